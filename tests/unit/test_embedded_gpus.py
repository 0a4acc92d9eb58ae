"""Which card fits which wish."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalnomad.embedded.gpus import Gpus, find_gpus
from modalnomad.model.gpus import Choice, Gpu, parse_choice

H100 = Gpu("GPU-h", "NVIDIA H100 80GB HBM3", 81_559)
A100_40 = Gpu("GPU-a", "NVIDIA A100-SXM4-40GB", 40_960)
A100_80 = Gpu("GPU-b", "NVIDIA A100 80GB PCIe", 81_920)
L40S = Gpu("GPU-l", "NVIDIA L40S", 46_068)
T4 = Gpu("GPU-t", "Tesla T4", 15_360)
A10G = Gpu("GPU-g", "NVIDIA A10G", 23_028)
RTX = Gpu("GPU-r", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 97_887)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("H100", Choice("H100", 0, 1)),
        ("h100:8", Choice("H100", 0, 8)),
        ("A100-80GB:2", Choice("A100", 80, 2)),
        ("H100!", Choice("H100", 0, 1)),
        ("any", Choice("ANY", 0, 1)),
    ],
)
def test_a_wish_is_type_memory_and_count(text: str, choice: Choice) -> None:
    assert parse_choice(text) == choice


@pytest.mark.parametrize(
    ("wish", "fitting"),
    [
        ("H100", {H100}),
        ("A100", {A100_40, A100_80}),
        ("A100-40GB", {A100_40, A100_80}),
        ("A100-80GB", {A100_80}),
        ("L40S", {L40S}),
        ("L4", set()),
        ("T4", {T4}),
        ("A10", set()),
        ("A10G", {A10G}),
        ("RTX-PRO-6000", {RTX}),
        ("RTX PRO 6000-80GB", {RTX}),
        ("PRO-RTX", set()),
        ("ANY", {H100, A100_40, A100_80, L40S, T4, A10G, RTX}),
    ],
)
def test_a_card_fits_by_the_words_of_its_name(wish: str, fitting: set[Gpu]) -> None:
    choice = parse_choice(wish)

    assert {gpu for gpu in (H100, A100_40, A100_80, L40S, T4, A10G, RTX) if choice.fits(gpu)} == fitting


def test_cards_are_taken_whole_and_in_the_order_of_wishes(tmp_path: Path) -> None:
    gpus = Gpus(tmp_path, lambda: (H100, A100_40, T4))

    with gpus.taken(["H100:2", "A100", "T4"]) as first, gpus.taken(["A100", "H100"]) as second:
        assert (first, second) == ((A100_40,), (H100,))
        assert not gpus.free(["ANY:2"])
        assert gpus.free(["ANY:1"])
    assert gpus.free(["ANY:3"])
    assert gpus.possible(["B200", "ANY:3"])
    assert not gpus.possible(["ANY:4"])


def test_a_machine_without_a_driver_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalnomad.embedded.gpus.LIBRARY", "libnothing-of-this-name.so.1")

    assert find_gpus() == ()
    assert Gpus(tmp_path, find_gpus).describe() == "none"
