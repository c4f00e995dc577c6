"""Shows projectors on disk: what is protected, how clear the cut is, and what they weigh.

    python -m scripts.inspect_projectors runs/tiny/seed_0/projectors/DIRECTORY
    python -m scripts.inspect_projectors DIRECTORY --figure=spectra.png

A row a site and layer: input size; protected rank; the share of directions left free; the share of
the inputs' energy that is protected; the gap at the cut, the last protected eigenvalue over the
first free one (near 1: the cut is arbitrary); bytes. With --figure every site's spectrum is drawn,
a line a layer, with its cut.
"""

import pathlib

from nspo_jax import nullspace
from nspo_jax.reports import figures, tables
from scripts import launch

FIGURE = launch.define_output("figure", "Also draw the spectra into this file.", file=True)


def main(directory: str) -> None:
    """Prints the table, and draws."""
    projectors = nullspace.load_projectors(directory)
    print(tables.format_projectors(projectors))
    if FIGURE.value:
        print(figures.plot_spectra(projectors, pathlib.Path(FIGURE.value)))


if __name__ == "__main__":
    launch.run(main, argument="DIRECTORY")
