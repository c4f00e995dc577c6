"""Shows projectors on disk: the protected directions, the clarity of the cut, and the size.

    python -m scripts.inspect_projectors runs/tiny/seed_0/projectors/DIRECTORY
    python -m scripts.inspect_projectors DIRECTORY --figure=spectra.png

The table has a row a site and layer, with the input size, the protected rank, the share of
directions left free, the share of the inputs' energy that is protected, the gap at the cut and the
size. The gap is the last protected eigenvalue over the first free one; near 1 the cut is arbitrary.
--figure draws every site's spectrum, a line a layer, with its cut.
"""

import pathlib

from nspo_jax import nullspace
from nspo_jax.reports import figures, tables
from scripts import launch

FIGURE = launch.define_output("figure", "Also draw the spectra into this file.", file=True)


def main(directory: str) -> None:
    """Prints the table, and draws the figure."""
    projectors = nullspace.load_projectors(directory)
    print(tables.format_projectors(projectors))
    if FIGURE.value:
        print(figures.plot_spectra(projectors, pathlib.Path(FIGURE.value)))


if __name__ == "__main__":
    launch.run(main, argument="DIRECTORY")
