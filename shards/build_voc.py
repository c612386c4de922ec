"""Build image shards from VOCdevkit/VOC2012, or from any folder in that layout.

    python shards/build_voc.py VOCdevkit/VOC2012 data/voc/train --list train_aug.txt \\
        --masks SegmentationClassAug --labels xml --saliency saliency/
"""

from pathlib import Path

from auxdist.data.command import build_parser, run_build, run_command, saliency_maker, split_name
from auxdist.data.voc import VocSource, voc_recipe


def main() -> None:
    """Parse the command line and build."""
    parser = build_parser(
        __doc__,
        "root",
        "folder with JPEGImages/",
    )
    parser.add_argument(
        "--list", required=True, help="file of keys, or its name in ImageSets/Segmentation"
    )
    parser.add_argument(
        "--labels",
        default="masks",
        metavar="masks|xml|FILE.json",
        help="image-level labels from the masks, Annotations/KEY.xml, or a JSON file "
        '{"classes": [names], "labels": {key: [0-based classes]}}; default: %(default)s',
    )
    parser.add_argument(
        "--masks",
        default="SegmentationClass",
        metavar="DIR|none",
        help="label PNGs, in ROOT or elsewhere; default: %(default)s",
    )
    parser.add_argument("--classes", type=Path, help="file of class names, one a line")
    parser.add_argument(
        "--no-ground-truth", action="store_true", help="keep no gt.png in the shards"
    )
    options = parser.parse_args()
    source = VocSource(
        root=options.root,
        listed=options.list,
        labels=options.labels,
        masks=None if options.masks == "none" else options.masks,
        classes=options.classes,
    )
    recipe = voc_recipe(
        source, split_name(options), saliency_maker(options), not options.no_ground_truth
    )
    run_build(recipe, options)


if __name__ == "__main__":
    run_command(main)
