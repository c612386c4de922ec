"""Build image shards from COCO images and their instances file.

    python shards/build_coco.py val2014/ data/coco/val \\
        --instances annotations/instances_val2014.json --no-saliency
"""

from pathlib import Path

from auxdist.data.coco import coco_recipe
from auxdist.data.command import build_parser, run_build, run_command, saliency_maker, split_name


def main() -> None:
    """Parse the command line and build."""
    parser = build_parser(
        __doc__,
        "images",
        "folder of the images",
    )
    parser.add_argument("--instances", type=Path, required=True, help="instances_*.json")
    parser.add_argument(
        "--list", type=Path, help="file of images to take, one a line; default: all"
    )
    parser.add_argument(
        "--no-ground-truth", action="store_true", help="keep no gt.png in the shards"
    )
    options = parser.parse_args()
    recipe = coco_recipe(
        options.images,
        options.instances,
        split_name(options),
        saliency_maker(options),
        not options.no_ground_truth,
        options.list,
    )
    run_build(recipe, options)


if __name__ == "__main__":
    run_command(main)
