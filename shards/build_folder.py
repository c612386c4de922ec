"""Build image shards from your own images and a CSV file of labels.

    python shards/build_folder.py photos/ data/own/train --labels labels.csv

A line of the CSV file is `file,label1;label2`; an image without any class has nothing after the
comma. JPEGs are kept byte for byte; PNGs are encoded once as JPEG of quality 95.
"""

from pathlib import Path

from auxdist.data.command import build_parser, run_build, run_command, saliency_maker, split_name
from auxdist.data.folder import FolderSource, folder_recipe, num_reencoded
from auxdist.data.photos import PNG_TO_JPEG_QUALITY


def main() -> None:
    """Parse the command line and build."""
    parser = build_parser(
        __doc__,
        "images",
        "folder of the images",
    )
    parser.add_argument("--labels", type=Path, required=True, help="CSV: file,label1;label2")
    parser.add_argument(
        "--classes", type=Path, help="file of class names, one a line; default: those of the CSV"
    )
    parser.add_argument("--masks", type=Path, help="folder of ground truth, KEY.png")
    options = parser.parse_args()
    source = FolderSource(options.images, options.labels, options.classes, options.masks)
    recipe = folder_recipe(source, split_name(options), saliency_maker(options))
    if num_pngs := num_reencoded(recipe):
        print(f"{num_pngs} PNG images are encoded once as JPEG, quality {PNG_TO_JPEG_QUALITY}.")
    run_build(recipe, options)


if __name__ == "__main__":
    run_command(main)
