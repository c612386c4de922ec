"""The colours of label images."""

from auxdist.data.palette import voc_palette


def test_colours_are_those_of_the_voc_devkit() -> None:
    palette = voc_palette(20)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[15] == (192, 128, 128)
    assert palette[20] == (0, 64, 128)


def test_all_classes_of_coco_have_their_own_colour() -> None:
    assert len(set(voc_palette(80))) == 81
