"""The shipped firmware is what its source says."""

from __future__ import annotations

import shutil

import pytest

from qemu_ring.errors import QemuRingError
from qemu_ring.guest import IMAGE_SIZE, IMAGES, build_image, image_bytes


@pytest.mark.skipif(shutil.which("as") is None, reason="binutils is not installed")
@pytest.mark.parametrize("name", IMAGES)
def test_shipped_image_is_built_from_the_shipped_source(name: str) -> None:
    assert build_image(name) == image_bytes(name)


@pytest.mark.parametrize("name", IMAGES)
def test_image_fills_the_reset_vector_s_64_kib(name: str) -> None:
    image = image_bytes(name)
    assert len(image) == IMAGE_SIZE
    assert image[0xFFF0] == 0xE9  # jmp near: where a CPU begins


def test_missing_assembler_is_told_with_the_package_to_install() -> None:
    with pytest.raises(QemuRingError, match=r"no-such-as is not installed; .*binutils"):
        build_image(assembler="no-such-as")


def test_failing_tool_is_told_with_its_words() -> None:
    with pytest.raises(QemuRingError, match="false failed"):
        build_image(assembler="false")
