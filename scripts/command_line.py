"""The reader of the scripts' command lines, which explains a mistake in a paragraph."""

import math
import re
import sys

from absl import flags

from scripts import config_files

_HELP = {"--help", "-help", "--helpshort", "-helpshort", "-h", "--h", "--helpfull", "-helpfull"}
# beginning of a flag parser's message -> the value that was expected
_EXPECTED = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean argument": "true or false",
    "Failed to parse": "its fields one by one, --config.SECTION.FIELD=VALUE",
}


class MistakeError(Exception):
    """A command line with a mistake in it."""


def parse(argv: list[str], config_kind: str) -> list[str]:
    """Reads a command line into `flags.FLAGS`; returns the program and the other arguments.

    For `--help` it prints the script's own text unchanged, and exits with 0.

    Args:
      argv: the program and its arguments.
      config_kind: the key of `config_files.CONFIG_KINDS` that --config must have.

    Raises:
      MistakeError: with an explanation of the mistake.
    """
    asked = _HELP.intersection(argv[: argv.index("--")] if "--" in argv else argv)
    if asked:
        print_help(whole=any("full" in flag for flag in asked))
        sys.exit(0)
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    config = _value_of(argv, "config")
    if config is not None and "config" in flags.FLAGS:
        try:  # ml_collections loads it once more, but explains mistakes less well
            config_files.load(config, kind=config_kind)
        except (ValueError, OSError) as error:
            raise MistakeError(str(error)) from error
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError) as error:
        raise MistakeError(_explain(error, config_kind)) from error
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise MistakeError(f"--{name} is {value}; expected a finite number.")
    return rest


def parse_seeds(text: str, said_by: str) -> list[int]:
    """Reads "0+1+2"; raises ValueError for a part that is no seed, or a seed that comes twice."""
    parts = text.split("+")
    if not all(re.fullmatch(r"\d+", part) for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(
            f"{said_by} is {text!r}; expected different whole numbers joined by '+', such as 0+1+2."
        )
    return [int(part) for part in parts]


def print_help(*, whole: bool = False) -> None:
    """Prints the running script's docstring and flags; with `whole`, those of libraries too."""
    words = sys.modules["__main__"].__doc__ or ""
    listed = flags.FLAGS.get_help() if whole else flags.FLAGS.main_module_help()
    print(f"{words.strip()}\n\nFlags:\n{listed}\n\n--helpfull lists the flags of libraries too.")


def _value_of(argv: list[str], name: str) -> str | None:
    """Returns a flag's value in a command line before it is parsed; None if it is not there."""
    for index, word in enumerate(argv):
        if word == "--":
            break
        match = re.fullmatch(rf"--?{name}(=(.*))?", word, re.DOTALL)
        if match:
            return match[2] if match[1] else "".join(argv[index + 1 : index + 2])
    return None


def _explain(error: BaseException, config_kind: str) -> str:
    """Explains to a person an error that the flags raised."""
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    if isinstance(chain[-1], KeyError):
        return _unknown_field(chain, config_kind)
    if isinstance(error, flags.UnrecognizedFlagError):
        return str(error).replace(f"'{error.flagname}'", f"'--{error.flagname}'", 1)
    parts = [_explain_flag(line) for line in str(error).splitlines() if line.startswith("flag --")]
    return " ".join(parts) or str(error)


def _unknown_field(chain: list[BaseException], config_kind: str) -> str:
    # ml_collections' message names the nearest field
    hint = next((str(e.args[0]) for e in chain if "Did you mean" in str(e.args)), "")
    hint = hint.strip("\"'").split("\\n")[-1].split("\n")[-1]
    field = str(chain[-1]).strip("\"'").partition("Attempting to lookup: ")[2] or str(chain[-1])
    words = f"The config has no field {field}. {hint}".rstrip()
    listed = "configs/sweeps/tiny_arms.py" if config_kind == "sweep" else "docs/configuration.md"
    return f"{words} {listed} lists every field."


def _explain_flag(line: str) -> str:
    """Turns absl's "flag --steps=x: why" into a sentence with the flag's help."""
    match = re.fullmatch(r"flag --([^=]+)=(.*?): (.*)", line)
    if match is None:
        return line
    name, value, why = match.groups()
    known = flags.FLAGS[name].help if name in flags.FLAGS else ""
    known = "" if known.startswith("An override of") else f" {known}".rstrip()
    if why.endswith("must have a value other than None."):
        return f"--{name} is missing:{known}"
    for said, what in _EXPECTED.items():
        if why.startswith(said):
            why = f"expected {what}"
    return f"--{name} is {value!r}: {why.rstrip('.')}.{known}"
