"""Converts a GGUF file to a directory in Hugging Face's layout, which every script here reads.

    python -m scripts.import_gguf --gguf=model.gguf --output=models/model
    python -m scripts.import_gguf --gguf=model.gguf --output=models/model --dtype=bfloat16

The script reads Llama, Qwen2, Qwen3, Gemma 2 and Gemma 3, and needs `pip install gguf`. It
multiplies quantised weights out: the result is as large as the plain model (four bytes a weight, or
two), and its weights are the file's, not those of the model before it was quantised. It takes the
tokenizer, its chat template and the ids that end an answer along. The output must not exist; it is
written whole or not at all.
"""

from absl import flags

from nspo_jax.models import gguf
from scripts import launch

GGUF = flags.DEFINE_string("gguf", None, "The file to convert.", required=True)
OUTPUT = launch.define_output("output", "The directory to write; it must not exist.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "The weights' dtype.")
flags.mark_flag_as_required("output")


def main() -> None:
    """Converts the file, and prints its contents."""
    report = gguf.import_gguf(GGUF.value, OUTPUT.value, dtype=DTYPE.value)
    model_config = report.model_config
    head = "tied" if model_config.tie_embeddings else "untied"
    kinds = ", ".join(f"{count} {name}" for name, count in report.quantisations.items())
    print(
        f"{model_config.family}: {model_config.num_layers} layers, "
        f"hidden size {model_config.hidden_size}, vocabulary {model_config.vocab_size}, {head}; "
        f"tensors: {kinds}"
    )
    template = "a chat template" if report.chat else "no chat template"
    print(f"tokenizer: {report.tokens} tokens, {template}")
    if report.left_out:
        print(f"left out: further chat templates ({', '.join(report.left_out)})")
    print(f"licence, as the file says: {report.licence or 'not stated'}")
    print(f"The model is in {OUTPUT.value} ({DTYPE.value}, {report.size / 1e9:.2f} GB).")


if __name__ == "__main__":
    launch.run(main, interrupted="stopped; nothing was written")
