"""Tables and figures from numbers whose rendering is known."""

import json

import matplotlib.image
import numpy as np
import pytest

from nspo_jax import nullspace
from nspo_jax.nullspace import spectrum as spectrum_lib
from nspo_jax.reports import figures, tables


def test_rates_are_percent_with_the_interval_of_the_median_over_seeds():
    few = {
        "base": {"unsafe": [0.8, 0.9, 0.81], "general": [1.0, 0.99, 0.98]},
        "nspo": {"unsafe": [0.0, 0.02, 0.01], "general": [0.99, 0.99, 0.99]},
    }
    text = tables.format_scores(few)
    assert "81.0 (80.0 to 90.0)" in text and "1.0 (0.0 to 2.0)" in text
    assert "over-refusal" not in text  # no column that no arm has
    assert text.endswith(
        "Median over 3 seeds (smallest to largest, which is a 75 % interval of the median)."
    )
    table = tables.format_scores(few, markdown=True).split("\n\n")[0]
    assert {line.count("|") for line in table.split("\n")} == {4}


def test_of_ten_seeds_the_worst_is_shown_in_each_column_s_own_sense():
    values = [0.9, 0.5, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 1.0]
    many = {"nspo": {"unsafe": values, "general": values, "kl_heldout": values}}
    header, _, row, _, caption = tables.format_scores(many).split("\n")
    assert "93.5 (90.0 to 97.0; 100.0)" in row  # unsafe
    assert "93.5 (90.0 to 97.0; 50.0)" in row  # general
    assert "9.4e-01 (9.0e-01 to 9.7e-01; 1.0e+00)" in row
    assert caption == "Median over 10 seeds (98 % interval of the median; worst seed)."


def test_one_run_has_the_sampling_error_of_its_prompts():
    run = {"unsafe": 0.25, "general": 0.5, "counts": {"unsafe": 200, "general": 1000}}
    text = tables.format_scores({"nspo": run})
    assert "25.0 (19.5 to 31.4)" in text and "50.0 (46.9 to 53.1)" in text
    assert text.endswith("One seed (95 % interval of the sample of prompts).")
    assert "(" not in tables.format_scores({"nspo": {"unsafe": 0.25}})


def test_columns_line_up():
    lines = tables.format_table([["a", "b"], ["long name", "1"], ["x", "12345"]]).split("\n")
    assert len({len(line) for line in lines}) == 1


def write_run(workdir, arm, seed, points):
    directory = workdir / f"seed_{seed}" / "runs" / arm
    directory.mkdir(parents=True)
    rows = []
    for step, (unsafe, general) in enumerate(points):
        kinds = ("unsafe", "unsafe_nouns", "unsafe_templates", "unsafe_both")
        rows.append({"step": step, **{f"evaluation/{kind}": unsafe for kind in kinds}})
        rows[-1] |= {"evaluation/general": general, "evaluation/borderline": general}
        rows.append({"step": step, "train/loss": 0.0})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(lines)


def test_a_curve_goes_on_where_seeds_stop_at_different_steps(tmp_path):
    write_run(tmp_path, "nspo", 0, [(1.0, 1.0), (0.5, 0.9), (0.0, 0.8)])
    write_run(tmp_path, "nspo", 1, [(1.0, 1.0), (0.1, 1.0)])
    first, second = figures.curve(tmp_path, "nspo", [0, 1])
    np.testing.assert_allclose(first, [[100, 100], [50, 90], [0, 80]])
    np.testing.assert_allclose(second, [[100, 100], [10, 100], [10, 100]])
    assert figures.curve(tmp_path, "nspo", [0], "over_refusal") == []
    with pytest.raises(FileNotFoundError, match="No evaluations of grpo at seed 0"):
        figures.curve(tmp_path, "grpo", [0])


def test_the_figure_has_six_arms_a_column_and_replay_apart(tmp_path):
    arms = ["base", "nspo", *(f"arm{i}" for i in range(6)), "nspo_replay"]
    for arm in arms:
        write_run(tmp_path, arm, 0, [(1.0, 1.0), (0.5, 0.9)])
    three = matplotlib.image.imread(figures.plot_arms(tmp_path, arms, [0]))
    one = matplotlib.image.imread(
        figures.plot_arms(tmp_path, ["base", "nspo"], [0], tmp_path / "one.png")
    )
    assert three.shape[1] == 3 * one.shape[1] and one.std() > 0.01


def test_an_arm_has_one_colour(tmp_path):
    assert figures.colour("nspo_replay") == figures.colour("nspo") == figures.COLOURS["nspo"]
    assert figures.colour("nspo,clip=0.1") == figures.colour("nspo")
    assert figures.colour("mine") == figures.colour("mine") != figures.colour("other")


def test_no_figure_is_drawn_over_another(tmp_path):
    write_run(tmp_path, "nspo", 0, [(1.0, 1.0), (0.5, 0.9)])
    path = figures.plot_arms(tmp_path, ["nspo"], [0])
    figures.plot_arms(tmp_path, ["nspo"], [0])  # itself, drawn again
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="is not this figure"):
        figures.plot_calibration(np.array([0.2, 0.8]), np.array([False, True]), path)
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(FileExistsError, match="is not this figure"):
        figures.plot_arms(tmp_path, ["nspo"], [0], tmp_path / "notes.png")
    assert path.read_bytes() == before


def test_projectors_show_their_cut_and_their_weight():
    spectrum = np.array([[8.0, 4.0, 2.0, 1.0], [8.0, 8.0, 0.0, 0.0]], np.float32)
    basis = np.broadcast_to(np.eye(4, 2, dtype=np.float32), (2, 4, 2))
    site = nullspace.Site(("layers/mlp/up/kernel",), basis, "protected", np.array([1, 2]))
    spectrum = spectrum_lib.Spectrum(spectrum, spectrum.sum(1), np.zeros(2, np.int32), 4)
    projectors = nullspace.Projectors({"layers/mlp/in": site}, {"layers/mlp/in": spectrum}, {})
    first, second = projectors.summary()
    assert (first["gap"], second["gap"]) == (2.0, np.inf)
    assert first["bytes"] == 4 * 2 * 4 and first["energy"] == pytest.approx(8 / 15)
    header, _, row, _, total = tables.format_projectors(projectors).split("\n")
    assert header.split()[-4:] == ["gap", "KiB", "side", "stored"] and "2.00" in row
    assert total.startswith("0.0 MiB")


def test_spectra_are_drawn(tmp_path):
    site = nullspace.Site(("head/kernel",), np.eye(4, 2, dtype=np.float32), "null", np.int32(2))
    spectrum = spectrum_lib.single(np.array([3.0, 2.0, 1e-9, 0.0]), 5.0, 4)
    projectors = nullspace.Projectors({"head/in": site}, {"head/in": spectrum}, {})
    path = figures.plot_spectra(projectors, tmp_path / "figures" / "spectra.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_scores_are_drawn_against_a_field_of_a_grid(tmp_path):
    scores = {"unsafe": [0.1, 0.2], "over_refusal": [0.0, 0.4]}
    arms = {f"nspo,benign_fraction={value}": scores for value in (0.0, 0.5)}
    path = figures.plot_against(arms, "benign_fraction", tmp_path / "curve.png")
    assert matplotlib.image.imread(path).std() > 0.01
    with pytest.raises(ValueError, match="No arm of the sweep was run for values of 'clip'"):
        figures.plot_against(arms, "clip", tmp_path / "curve.png")


def test_calibration_is_drawn_and_epochs_are_tabled(tmp_path):
    claimed = np.linspace(0.0, 1.0, 50)
    path = figures.plot_calibration(claimed, claimed > 0.4, tmp_path / "figures" / "c.png")
    assert matplotlib.image.imread(path).std() > 0.01
    lines = [{"epoch": 1, "loss": 0.5, "held_out_pair_accuracy": 0.913}]
    header, _, row = tables.format_epochs(lines).split("\n")
    assert "91.3 %" in row and "held out pair accuracy" in header
