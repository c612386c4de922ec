"""Draw scenes with exact ground truth and build image shards of them: the data of the demo.

python shards/build_demo.py build/demo/train --count 320 --seed 0
"""

from auxdist.data.command import (
    build_parser,
    positive,
    run_build,
    run_command,
    saliency_maker,
    split_name,
)
from auxdist.data.drawn import drawn_recipe


def main() -> None:
    """Parse the command line and build."""
    parser = build_parser(__doc__)
    parser.add_argument("--count", type=positive, default=320, help="images; default: %(default)s")
    parser.add_argument("--size", type=int, default=128, help="pixels; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    recipe = drawn_recipe(
        options.seed, split_name(options), options.count, options.size, saliency_maker(options)
    )
    run_build(recipe, options)


if __name__ == "__main__":
    run_command(main)
