"""Fits the refusal detector, judges it on models that the fit did not see, and writes its weights.

    python -m scripts.fit_refusals --data=../shared/data           # prints and writes everything
    python -m scripts.fit_refusals --data=DIR --labelled=mine=mine.csv --output= --results=

DIR has the files that LABELLED, FITTED and HARMLESS name. A labelled file is XSTest's: completion
and final_label, of which 1_full_compliance is an answer and the others are refusals. For each of
them a fit without it gives agreement and Cohen's kappa with the final label and 95 % intervals
(Wilson; 2000 bootstraps), beside those of the rules and of the two annotators with each other. The
files share their prompts, so each row is also judged by a fit that has neither its file nor the
prompts of its kind. A file given by --labelled is only judged. CoCoNot's rejected answers count as
a labelled file; a language model labelled them (coconot_labels.json), and its kinds are folds.
Made-up refusals and answers (refusal_texts) are in every fit, and in no figure. False alarms are
shares of harmless answers called refusals, by the final fit, on rows that no fit saw.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import pathlib
import re

from absl import flags
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from nspo_jax import files
from nspo_jax.reports import intervals, tables
from nspo_jax.rewards import refusal_features, refusals
from scripts import launch, refusal_texts

DATA = flags.DEFINE_string("data", "../shared/data", "The directory of the files.")
OWN = flags.DEFINE_multi_string(
    "labelled", [], "NAME=PATH of one more labelled csv file, which is judged and not fitted."
)
OUTPUT = flags.DEFINE_string("output", str(refusals.WEIGHTS), "The weights' file; '': none.")
RESULTS = flags.DEFINE_string(
    "results", "docs/results/refusals.json", "The figures' file; '': none."
)

LABELLED = {  # Roettger et al., CC BY 4.0
    "gpt4": "xstest/xstest_v2_completions_gpt4.csv",
    "llama2orig": "xstest_more/xstest_v2_completions_llama2orig.csv",
    "mistralinstruct": "xstest_more/xstest_v2_completions_mistralinstruct.csv",
}
# CoCoNot's rejected answers of many models, as coconot_labels.json labels them; their weight
REJECTED, REJECTED_WEIGHT = "coconot_rejected", 0.3
FOLDS, FOLD_ROWS = 5, 30  # neighbouring prompts are alike and share a fold
# name: file, column, rows that are fitted, their weight (ODC-BY, MIT, Apache-2.0, MIT)
FITTED = {
    "coconot": ("coconot/coconot_pref.jsonl", "chosen", slice(0, 600), 0.7),
    "gsm8k_train": ("gsm8k/train_first1000.jsonl", "answer", slice(0, 200), 0.3),
    "truthfulqa": ("truthfulqa/TruthfulQA.csv", "Best Answer", slice(0, 400), 0.3),
    "leetcode": ("leetcode/LeetCodeDataset-v0.1.0-train.jsonl.gz", "response", slice(0, 100), 0.3),
}
HARMLESS = {
    "coconot, the others": ("coconot/coconot_pref.jsonl", "chosen", slice(600, None)),
    "truthfulqa, the others": ("truthfulqa/TruthfulQA.csv", "Best Answer", slice(400, None)),
    "gsm8k test": ("gsm8k/test.jsonl", "answer", slice(None)),
    "alpaca": ("alpaca/alpaca_random9k_first5000.jsonl", "output", slice(None)),
    "dolly": ("dolly/dolly_filtered3k.jsonl", "output", slice(None)),
    "math500": ("math/math500.jsonl", "solution", slice(None)),
    "leetcode, the others": (
        "leetcode/LeetCodeDataset-v0.1.0-train.jsonl.gz", "response", slice(100, None),
    ),
}  # fmt: skip
MADE_UP, MADE_UP_WEIGHT = 2000, 0.2  # of each kind; the weight of each
REGULARISATION = 0.005  # the inverse strength C of the L2 penalty on standardised features
LICENSE = (
    "Fitted by scripts/fit_refusals.py to XSTest's labelled answers (Roettger et al., CC BY 4.0), "
    "CoCoNot (AI2, ODC-BY), GSM8K (OpenAI, MIT), TruthfulQA (Lin et al., Apache-2.0), "
    "LeetCodeDataset (MIT) and phrases of this repository (Apache-2.0). The words are those of "
    "three or more of these texts."
)
TITLES = {
    "left_out": "learned, fitted without the file",
    "left_out_with_kind": "learned, without file and kind of prompt; coconot: without the fold",
    "rules": "rules",
    "people": "one annotator, by the other",
}
SHARES = ("refusals_found", "in_part_found", "answers_kept")
FLOOR = 0.1  # is added to a feature's standard deviation, so that rare ones stay small


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Reads the rows of a .csv, .jsonl or .jsonl.gz file.

    Raises:
      FileNotFoundError: if it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. Set --data to the directory of SOURCES' files."
        )
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Answers with labels.

    Attributes:
      texts: the answers.
      refused: whether each is a refusal, bool [rows].
      partial: whether it is one in part, bool [rows].
      kinds: the kind of each prompt, the same for prompts and their contrasts; "": unknown.
      people: what each of two annotators says, bool [2, rows], or None.
    """

    texts: list[str]
    refused: np.ndarray
    partial: np.ndarray
    kinds: np.ndarray
    people: np.ndarray | None = None


def read_labelled(path: pathlib.Path) -> Labelled:
    """Reads a labelled file.

    Raises:
      ValueError: if a column is missing.
    """
    rows = read_rows(path)
    if missing := {"completion", "final_label"} - set(rows[0]):
        raise ValueError(
            f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(rows[0])}. "
            "Name them as XSTest does: completion and final_label, such as 2_full_refusal."
        )
    columns = [name for name in ("annotation_1", "annotation_2") if name in rows[0]]
    labels = {name: np.array([row[name][:1] for row in rows]) for name in ("final_label", *columns)}
    return Labelled(
        [row["completion"] for row in rows],
        labels["final_label"] != "1",
        labels["final_label"] == "3",
        np.array([_kind(row.get("type", "")) for row in rows]),
        np.stack([labels[name] != "1" for name in columns]) if len(columns) == 2 else None,
    )


def _kind(name: str) -> str:
    """Returns the kind of a prompt by its type: contrast_homonyms is homonyms."""
    name = name.removeprefix("contrast_")
    return next((kind for kind in ("discr", "privacy") if kind in name), name)


def read_rejected(path: pathlib.Path) -> Labelled:
    """Reads the rejected answers that coconot_labels.json labels; their kinds are folds.

    Raises:
      ValueError: if the file lacks a row that has a label.
    """
    labels = json.loads(pathlib.Path(__file__).with_name("coconot_labels.json").read_text())
    refusals, unclear = set(labels["refusals"]), set(labels["unclear"])
    rows = read_rows(path)
    if missing := (refusals | unclear) - {row["id"] for row in rows}:
        raise ValueError(
            f"{path} lacks the ids {', '.join(sorted(missing))} of coconot_labels.json. "
            "Take the file that SOURCES names."
        )
    rows = [
        row
        for row in rows
        if row["id"] not in unclear and row["subcategory"] != "false presuppositions"
    ]
    refused = np.array([row["id"] in refusals for row in rows])
    folds = np.array([f"fold {number // FOLD_ROWS % FOLDS}" for number in range(len(rows))])
    return Labelled([row["rejected"] for row in rows], refused, np.zeros(len(rows), bool), folds)


def read_all(texts: Sequence[str]) -> np.ndarray:
    """Returns the features of answers, float64 [answers, features]."""
    return np.stack([refusal_features.read(refusal_features.strip_thoughts(t)) for t in texts])


def fit(features: np.ndarray, refused: np.ndarray, weights: np.ndarray, english: frozenset[str]):
    """Fits the regression; the standardisation of the features goes into its weights.

    Args:
      features: [rows, features].
      refused: bool [rows].
      weights: how much each row counts, [rows].
      english: the words that the model knows English by.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + FLOOR
    # Newton's steps end at the same weights whatever the number of threads
    regression = LogisticRegression(C=REGULARISATION, solver="newton-cholesky", tol=1e-10)
    regression.fit((features - mean) / scale, refused, sample_weight=weights)
    coefficients = regression.coef_[0] / scale
    return refusals.Model(
        float(regression.intercept_[0] - mean @ coefficients), coefficients, english
    )


def agreement(found: np.ndarray, rows: Labelled) -> dict[str, float | list[float]]:
    """Compares verdicts (1, 0, NaN: none) with labels; a missing verdict agrees with nobody.

    Returns:
      n, none, agreement and kappa with their intervals; the shares of refusals found, of those in
      part, if there are any, and of answers kept.
    """
    refused = rows.refused
    in_part = refused & rows.partial
    right = found == refused
    missed = np.where(np.isnan(found), ~refused, found > 0.5)  # a missing verdict counts as wrong
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(right), size=len(right)) for _ in range(2000)]
    kappas = [cohen_kappa_score(refused[rows], missed[rows]) for rows in draws]
    return {
        "n": len(right),
        "none": int(np.isnan(found).sum()),
        "agreement": float(right.mean()),
        "agreement_interval": list(intervals.share_interval(float(right.mean()), len(right))),
        "kappa": float(cohen_kappa_score(refused, missed)),
        "kappa_interval": [float(q) for q in np.nanquantile(kappas, (0.025, 0.975))],
        "refusals_found": float(right[refused].mean()) if refused.any() else float("nan"),
        **({"in_part_found": float(right[in_part].mean())} if in_part.any() else {}),
        "answers_kept": float(right[~refused].mean()) if (~refused).any() else float("nan"),
    }


def words_of(texts: Sequence[str]) -> frozenset[str]:
    """Returns the lower-case words that stand in at least three of the texts."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in set(re.findall(r"[a-z]{2,}", text.lower())):
            counts[word] = counts.get(word, 0) + 1
    return frozenset(word for word, count in counts.items() if count >= 3)


def judge(texts: Sequence[str], model: refusals.Model) -> np.ndarray:
    """Returns a model's verdicts, 1, 0 or NaN, float64 [texts]."""
    return np.array([refusals.judge(text, model).refused for text in texts])


class Fits:
    """The rows of every fit, and the fits."""

    def __init__(self, root: pathlib.Path):
        self.labelled = {name: read_labelled(root / path) for name, path in LABELLED.items()}
        self.labelled[REJECTED] = read_rejected(root / FITTED["coconot"][0])
        self._texts = {
            name: [row[column] for row in read_rows(root / path)][rows]
            for name, (path, column, rows, _) in FITTED.items()
        }
        bodies = self._texts["coconot"]
        refused = refusal_texts.refusals(MADE_UP, 0, bodies[:300])
        answered = refusal_texts.answers(MADE_UP, 1, bodies)
        self._features = {name: read_all(rows.texts) for name, rows in self.labelled.items()}
        self._others = [
            (read_all(refused), True, MADE_UP_WEIGHT),
            (read_all(answered), False, MADE_UP_WEIGHT),
            *((read_all(texts), False, FITTED[name][3]) for name, texts in self._texts.items()),
        ]

    def without(self, left_out: str, kind: str | None = None) -> refusals.Model:
        """Returns the fit on all files but one ("": none), and without the prompts of a kind."""
        parts, texts = [], [*self._texts.values()]
        for name, rows in self.labelled.items():
            if name == left_out:
                continue
            kept = rows.kinds != kind
            weight = REJECTED_WEIGHT if name == REJECTED else 1.0
            parts.append((self._features[name][kept], rows.refused[kept], weight))
            texts.append([text for text, keep in zip(rows.texts, kept, strict=True) if keep])
        parts += [(rows, np.full(len(rows), known), weight) for rows, known, weight in self._others]
        return fit(
            np.concatenate([rows for rows, _, _ in parts]),
            np.concatenate([known for _, known, _ in parts]),
            np.concatenate([np.full(len(rows), weight) for rows, _, weight in parts]),
            words_of([text for part in texts for text in part]),
        )

    def judge_kinds(self, name: str) -> np.ndarray:
        """Returns verdicts by fits that have neither the file nor the prompts of a row's kind.

        Of REJECTED they have the other folds.
        """
        rows, left_out = self.labelled[name], "" if name == REJECTED else name
        found = np.zeros(len(rows.texts))
        for kind in sorted(set(rows.kinds)):
            chosen = np.flatnonzero(rows.kinds == kind)
            found[chosen] = judge([rows.texts[i] for i in chosen], self.without(left_out, kind))
        return found


def main() -> None:
    """Fits, judges, prints and writes."""
    root = pathlib.Path(DATA.value)
    own = dict(_named(text) for text in OWN.value)
    fits = Fits(root)
    final = fits.without("")
    results: dict = {kind: {} for kind in TITLES} | {"false_alarms": {}, "sha256": _hashes(root)}
    for name, rows in (fits.labelled | own).items():
        model = fits.without(name) if name in fits.labelled else final
        results["left_out"][name] = agreement(judge(rows.texts, model), rows)
        by_rules = np.array([refusals.rules(text).refused for text in rows.texts])
        results["rules"][name] = agreement(by_rules, rows)
        if name in fits.labelled:
            results["left_out_with_kind"][name] = agreement(fits.judge_kinds(name), rows)
        if rows.people is not None:
            one, other = rows.people
            other = dataclasses.replace(rows, refused=other)
            results["people"][name] = agreement(one.astype(float), other)
    for name, (path, column, rows) in HARMLESS.items():
        texts = [row[column] for row in read_rows(root / path)][rows]
        results["false_alarms"][name] = false_alarms(judge(texts, final))
    _print(results)
    if OUTPUT.value:
        files.write_text(pathlib.Path(OUTPUT.value), json.dumps(_weights(final), indent=1) + "\n")
    if RESULTS.value:
        files.write_text(pathlib.Path(RESULTS.value), json.dumps(results, indent=1) + "\n")


def false_alarms(found: np.ndarray) -> dict[str, float | list[float]]:
    """Counts the verdicts (1, 0, NaN: none) on harmless answers, with the share of refusals."""
    count = int(np.nansum(found))
    return {
        "n": len(found),
        "none": int(np.isnan(found).sum()),
        "refusals": count,
        "share": count / len(found),
        "interval": list(intervals.share_interval(count / len(found), len(found))),
    }


def _named(text: str) -> tuple[str, Labelled]:
    name, equals, path = text.partition("=")
    if not equals or name in (*LABELLED, REJECTED):
        raise ValueError(
            f"--labelled is {text!r}; expected NAME=PATH with a name other than "
            f"{', '.join((*LABELLED, REJECTED))}."
        )
    return name, read_labelled(pathlib.Path(path))


def _weights(model: refusals.Model) -> dict:
    named = zip(refusal_features.NAMES, model.weights, strict=True)
    return {
        "license": LICENSE,
        "bias": round(model.bias, 5),
        "english": " ".join(sorted(model.english)),
        "weights": {name: round(float(weight), 5) + 0.0 for name, weight in named},  # no -0.0
    }


def _hashes(root: pathlib.Path) -> dict[str, str]:
    paths = {*LABELLED.values(), *(row[0] for row in [*FITTED.values(), *HARMLESS.values()])}
    return {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in sorted(paths)}


def _percent(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _print(results: Mapping[str, Mapping]) -> None:
    for kind, title in TITLES.items():
        table = [
            (
                "file",
                "n",
                "none",
                "agreement %",
                "kappa",
                "refusals found",
                "in part",
                "answers kept",
            )
        ]
        for name, row in results[kind].items():
            low, high = row["kappa_interval"]
            table.append((
                name, str(row["n"]), str(row["none"]),
                _percent(row["agreement"], row["agreement_interval"]),
                f"{row['kappa']:.3f} ({low:.3f} to {high:.3f})",
                *(f"{100 * row[key]:.1f}" if key in row else "" for key in SHARES),
            ))  # fmt: skip
        print(f"\n{title}\n\n{tables.format_table(table)}")
    table = [("file", "n", "none", "refusals", "false alarms %")]
    for name, row in results["false_alarms"].items():
        counts = (str(row[key]) for key in ("n", "none", "refusals"))
        table.append((name, *counts, _percent(row["share"], row["interval"])))
    print(f"\nharmless answers that no fit saw, final fit\n\n{tables.format_table(table)}")


if __name__ == "__main__":
    launch.run(main)
