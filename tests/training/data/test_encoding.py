"""A folder of pictures through a real, small encoder: every row is that of its own crop."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.geometry import cover
from textual_inversion.pictures.reading import read_image
from textual_inversion.training.data.encoding import Encoded, encode_set
from textual_inversion.training.data.latents import LatentStore, encoder_hash, sample
from textual_inversion.training.data.training_set import DatasetOptions, TrainingSet, scan_training_set
from textual_inversion.training.data.views import BUCKETS, OWN, Sizing, to_tensor

SIZES = [(96, 64), (64, 96), (64, 64), (200, 64), (70, 66), (64, 130), (96, 96)]


class SmallVae(nn.Module):
    """A real, lopsided encoder: its answer to a mirrored picture is not the mirrored answer."""

    scale_factor = 0.18215
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype = dtype
        self.passes = 0
        self.conv = nn.Conv2d(3, 8, 8, stride=8).to(dtype)

    def encode_moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert pixels.dtype == self.dtype
        assert pixels.min() >= -1
        assert pixels.max() <= 1
        self.passes += 1
        mean, logvar = self.conv(pixels).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures of different sizes."""
    folder = tmp_path_factory.mktemp("drawn")
    noise = np.random.default_rng(0)
    for index, (width, height) in enumerate(SIZES):
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def some(drawn: Path, folder: Path, count: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for index in range(count):
        shutil.copy(drawn / f"{index}.png", folder)
    return folder


def scanned(folder: Path, sizing: Sizing | None = None, **more: object) -> TrainingSet:
    return scan_training_set(folder, DatasetOptions(sizing or Sizing(96, 64), **more))  # type: ignore[arg-type]


def encoded(folder: Path, sizing: Sizing | None = None, *, flip: bool = False, store: LatentStore | None = None) -> Encoded:
    return encode_set(SmallVae(), scanned(folder, sizing), flip=flip, store=store)


def by_hand(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, logvar = SmallVae().encode_moments(pixels[None].float() / 127.5 - 1)
    return mean[0].detach() * 0.18215, logvar[0].detach().exp().sqrt() * 0.18215


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_each_row_is_the_encoding_of_its_own_picture(drawn: Path, tmp_path: Path, count: int, batch_size: int, flip: bool) -> None:
    folder = some(drawn, tmp_path / "some", count)
    seen: list[tuple[int, int]] = []
    result = encode_set(
        SmallVae(), scanned(folder), flip=flip, batch_size=batch_size, progress=lambda done, total: seen.append((done, total))
    )
    (bucket,) = result.buckets
    moments = bucket.moments
    rows = count * (2 if flip else 1)
    assert moments.views == count
    assert moments.flipped is flip
    assert bucket.pictures == tuple(range(count))
    assert moments.mean.shape == moments.std.shape == (rows, 4, 8, 12)
    for row in range(rows):
        pixels = to_tensor(cover(read_image(folder / f"{row % count}.png"), (96, 64)))
        mean, std = by_hand(pixels.flip(-1) if row >= count else pixels)
        torch.testing.assert_close(moments.mean[row], mean)
        torch.testing.assert_close(moments.std[row], std)
    assert seen[-1] == (rows, rows)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_the_mirror_image_is_encoded_not_its_latent(drawn: Path) -> None:
    moments = encoded(drawn, flip=True).buckets[0].moments
    assert (moments.mean[7:] - moments.mean[:7].flip(-1)).abs().max() > 1e-3


def test_pictures_of_one_size_come_together_each_at_its_own(drawn: Path) -> None:
    result = encoded(drawn, Sizing(64, 64, OWN), flip=True)
    sizes = {picture: tuple(bucket.moments.mean.shape[-2:]) for bucket in result.buckets for picture in bucket.pictures}
    assert sizes == {index: (height // 8, width // 8) for index, (width, height) in enumerate(SIZES)}
    (row,) = [bucket for bucket in result.buckets if 4 in bucket.pictures]
    middle = to_tensor(read_image(drawn / "4.png").crop((3, 1, 67, 65)))
    place = row.pictures.index(4)
    torch.testing.assert_close(row.moments.mean[place], by_hand(middle)[0])
    torch.testing.assert_close(row.moments.mean[row.moments.views + place], by_hand(middle.flip(-1))[0])


def test_crops_are_views_of_one_picture(drawn: Path) -> None:
    (bucket,) = encoded(drawn, Sizing(64, 64, crops=3)).buckets
    assert bucket.pictures == (0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 5, 5, 5, 6)
    wide = read_image(drawn / "3.png")
    for row, left in zip((7, 8, 9), (0, 68, 136)):
        torch.testing.assert_close(bucket.moments.mean[row], by_hand(to_tensor(wide.crop((left, 0, left + 64, 64))))[0])


def test_a_half_precision_vae_gives_fp32_moments_that_autograd_accepts(drawn: Path) -> None:
    moments = encode_set(SmallVae(torch.bfloat16), scanned(drawn), flip=False).buckets[0].moments
    assert moments.mean.dtype == moments.std.dtype == torch.float32
    weight = torch.ones((), requires_grad=True)
    (sample(moments, torch.tensor([0, 1]), None) * weight).sum().backward()
    assert weight.grad is not None
    assert not moments.mean.requires_grad
    assert not moments.mean.is_inference()


def test_damage_that_shows_late_costs_that_picture_only(drawn: Path, tmp_path: Path) -> None:
    folder = some(drawn, tmp_path / "some", 6)
    whole = encoded(folder, flip=True).buckets[0].moments
    for name in ("1.png", "4.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    seen: list[tuple[int, int]] = []
    result = encode_set(SmallVae(), scanned(folder), flip=True, progress=lambda *numbers: seen.append(numbers))
    assert {index: error.path for index, error in result.failed.items()} == {1: folder / "1.png", 4: folder / "4.png"}
    (bucket,) = result.buckets
    assert bucket.pictures == (0, 2, 3, 5)
    good = [0, 2, 3, 5]
    torch.testing.assert_close(bucket.moments.mean, whole.mean[good + [6 + row for row in good]])
    assert seen[-1] == (12, 12)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match=r"None of the 6 pictures .* 0\.png cannot be read: its data are damaged"):
        encoded(folder)


def test_values_that_are_not_finite_name_the_picture(tmp_path: Path) -> None:
    class Broken(SmallVae):
        def encode_moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, logvar = super().encode_moments(pixels)
            return torch.where(pixels.mean(dim=(1, 2, 3), keepdim=True) > 0.9, torch.nan, mean), logvar

    for index, colour in enumerate(("red", "white", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{index}.png")
    with pytest.raises(DatasetError, match=r"not finite for 1\.png; take that picture out") as error:
        encode_set(Broken(), scanned(tmp_path), flip=True)
    assert error.value.path == tmp_path / "1.png"


def test_an_interrupt_ends_the_reading_too(drawn: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_set(SmallVae(), scanned(drawn), flip=False, batch_size=1, progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("textual-inversion-pictures")]


def test_pixels_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many pictures only a few are in memory at a time, and each is read once."""
    alive, most, reads = [0], [0], [0]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "0.png")
    for index in range(1, 60):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{index}.png")
    real = TrainingSet.views

    class Counted(list):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive[0] -= 1

    def views(self: TrainingSet, index: int) -> list[object]:
        loaded = Counted(real(self, index))
        alive[0], reads[0] = alive[0] + 1, reads[0] + 1
        most[0] = max(most[0], alive[0])
        return loaded

    monkeypatch.setattr(TrainingSet, "views", views)
    encoded(tmp_path)
    assert reads[0] == 60
    assert most[0] < 20


@pytest.mark.parametrize("sizing", [Sizing(96, 64), Sizing(96, 96, BUCKETS, 8), Sizing(64, 64, crops=4)])
def test_a_second_start_encodes_nothing_and_gets_the_same(drawn: Path, tmp_path: Path, sizing: Sizing) -> None:
    store = LatentStore(tmp_path / "kept", "encoder")
    first, vae = encoded(drawn, sizing, flip=True, store=store), SmallVae()
    assert first.stored == 0
    second = encode_set(vae, scanned(drawn, sizing), flip=True, store=LatentStore(tmp_path / "kept", "encoder"))
    assert (vae.passes, second.stored) == (0, 7)
    for one, other in zip(first.buckets, second.buckets):
        assert torch.equal(one.moments.mean, other.moments.mean)
        assert torch.equal(one.moments.std, other.moments.std)
        assert one.pictures == other.pictures
    assert not list((tmp_path / "kept").glob(".*"))


def test_only_changed_pictures_are_encoded_anew(drawn: Path, tmp_path: Path) -> None:
    folder = some(drawn, tmp_path / "some", 5)
    kept = tmp_path / "kept"
    first = encoded(folder, store=LatentStore(kept, "encoder")).buckets[0]
    Image.new("RGB", (96, 64), "red").save(folder / "2.png")
    (folder / "1.png").rename(folder / "9.png")
    changed = encoded(folder, store=LatentStore(kept, "encoder"))
    assert changed.stored == 4
    assert torch.equal(changed.buckets[0].moments.mean[[0, 2, 3, 4]], first.moments.mean[[0, 3, 4, 1]])
    torch.testing.assert_close(changed.buckets[0].moments.mean[1], by_hand(to_tensor(read_image(folder / "2.png")))[0])
    for store, flip in ((LatentStore(kept, "another"), False), (LatentStore(kept, "encoder"), True)):
        assert encoded(folder, flip=flip, store=store).stored == 0
    assert encode_set(SmallVae(), scanned(folder, background="black"), flip=False, store=LatentStore(kept, "encoder")).stored == 0


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: data[:-5] + b"\x01" + data[-4:], lambda data: b"x" * 99]
)
def test_a_damaged_entry_is_encoded_anew_and_said(drawn: Path, tmp_path: Path, damage: object) -> None:
    kept = tmp_path / "kept"
    first = encoded(drawn, store=LatentStore(kept, "encoder")).buckets[0]
    victim = sorted(kept.iterdir())[0]
    victim.write_bytes(damage(victim.read_bytes()))  # type: ignore[operator]
    store = LatentStore(kept, "encoder")
    second = encoded(drawn, store=store)
    assert second.stored == 6
    torch.testing.assert_close(second.buckets[0].moments.mean, first.moments.mean)
    assert list(store.problems.values()) == [f"Latents kept in {kept} were damaged; those pictures are encoded anew."]
    assert encoded(drawn, store=LatentStore(kept, "encoder")).stored == 7


def test_a_folder_that_cannot_be_written_is_noted_once(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = LatentStore(tmp_path / "file" / "kept", "encoder")
    assert encoded(drawn, store=store).stored == 0
    assert len(store.problems) == 1
    assert "cannot be written" in store.problems["unwritable"]


def test_the_folder_is_bounded_and_files_used_last_stay(drawn: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    encoded(drawn, store=LatentStore(kept, "encoder"))
    one = max(path.stat().st_size for path in kept.iterdir())
    (kept / "mine.txt").write_text("not ours")
    store = LatentStore(kept, "other", 5 * one)
    encoded(drawn, store=store)
    left = [path for path in kept.iterdir() if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in left) <= 5 * one
    assert len(left) == 5
    assert (kept / "mine.txt").exists()


def test_the_hash_of_an_encoder_is_that_of_its_values() -> None:
    one, same, other = SmallVae(), SmallVae(), SmallVae()
    other.conv.weight.data[0, 0, 0, 0] += 1e-3
    assert encoder_hash(one) == encoder_hash(same) != encoder_hash(other)
    assert encoder_hash(SmallVae(torch.bfloat16)) != encoder_hash(one)
