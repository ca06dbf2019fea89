"""The tiny decoder of TAEHV's layout: its published names and shapes, its arithmetic written again, and streaming that is exact."""

import pytest
import torch
import torch.nn.functional as F

from worldmodel.tiny_decoder import TinyWanDecoder


def published(channels=16, first_grow=1):
    """Random tensors under the names of the published file, in its order of layers."""
    g = torch.Generator().manual_seed(0)
    out = {}

    def conv(name, n_in, n_out, size=3, bias=True):
        out[f"{name}.weight"] = torch.randn(n_out, n_in, size, size, generator=g) / (n_in * size * size) ** 0.5
        if bias:
            out[f"{name}.bias"] = torch.randn(n_out, generator=g) * 0.1

    def memory(name, width):
        for i, n_in in ((0, 2 * width), (2, width), (4, width)):
            conv(f"{name}.conv.{i}", n_in, width)

    conv("encoder.0", 3, 64)
    at = 2
    for stride in (2, 2, 1):
        conv(f"encoder.{at}.conv", 64 * stride, 64, 1, False)
        conv(f"encoder.{at + 1}", 64, 64, bias=False)
        for i in range(3):
            memory(f"encoder.{at + 2 + i}", 64)
        at += 5
    conv(f"encoder.{at}", 64, channels)
    conv("decoder.1", channels, 256)
    at = 3
    for width, after, stride in ((256, 128, first_grow), (128, 64, 2), (64, 64, 2)):
        for i in range(3):
            memory(f"decoder.{at + i}", width)
        conv(f"decoder.{at + 4}.conv", width, width * stride, 1, False)
        conv(f"decoder.{at + 5}", width, after, bias=False)
        at += 6
    conv(f"decoder.{at + 1}", 64, 3)
    return out


@torch.no_grad()
def reference(t, latents):
    """Frames [T, 3, H, W] of a whole clip [C, T, h, w], frame by frame through lists."""

    def conv(x, name):
        w = t[f"{name}.weight"]
        return F.conv2d(x, w, t.get(f"{name}.bias"), padding=w.shape[-1] // 2)

    frames = [F.relu(conv(3 * torch.tanh(x / 3), "decoder.1")) for x in latents.transpose(0, 1).unsqueeze(1)]
    at = 3
    for _ in range(3):
        for i in range(3):
            before, out = torch.zeros_like(frames[0]), []
            for x in frames:
                y = torch.cat([x, before], 1)
                for k in (0, 2, 4):
                    y = conv(y if k == 0 else F.relu(y), f"decoder.{at + i}.conv.{k}")
                out.append(F.relu(y + x))
                before = x
            frames = out
        frames = [F.interpolate(x, scale_factor=2) for x in frames]
        grown = [conv(x, f"decoder.{at + 4}.conv") for x in frames]
        frames = [part for x, y in zip(frames, grown, strict=True) for part in y.split(x.shape[1], 1)]
        frames = [conv(x, f"decoder.{at + 5}") for x in frames]
        at += 6
    return torch.cat([conv(F.relu(x), f"decoder.{at + 1}").clamp(0, 1) for x in frames])[3:]


@torch.no_grad()
def test_it_loads_the_published_layout_and_computes_it_in_any_pieces():
    tensors = published()
    model = TinyWanDecoder.from_tensors(dict(tensors))
    latents = torch.randn(2, 16, 4, 2, 3)
    whole = model.decode(latents)
    assert whole.shape == (2, 3, 13, 16, 24)
    for row in range(2):
        expected = reference(tensors, latents[row])
        assert expected.std() > 0.05 and ((whole[row].transpose(0, 1) + 1) / 2 - expected).abs().max() <= 1e-5
    for sizes in ((1, 1, 1, 1), (1, 3), (2, 2)):
        state, pieces = None, []
        for piece in latents.split(list(sizes), dim=2):
            frames, state = model.decode_chunk(piece, state)
            pieces.append(frames)
        assert torch.equal(torch.cat(pieces, 2), whole)


@torch.no_grad()
def test_going_back_needs_only_an_old_state():
    model = TinyWanDecoder.from_tensors(published())
    latents = torch.randn(1, 16, 3, 2, 2)
    _, state = model.decode_chunk(latents[:, :, :1])
    first, _ = model.decode_chunk(latents[:, :, 1:2], state)
    model.decode_chunk(latents[:, :, 2:], state)
    assert torch.equal(model.decode_chunk(latents[:, :, 1:2], state)[0], first)


def test_it_encodes_a_picture_to_one_latent_frame():
    latents = TinyWanDecoder.from_tensors(published()).encode(torch.rand(1, 3, 5, 16, 24) * 2 - 1)
    assert latents.shape == (1, 16, 2, 2, 3)
    with pytest.raises(ValueError, match="1 \\+ 4k frames"):
        TinyWanDecoder.from_tensors(published()).encode(torch.zeros(1, 3, 4, 16, 16))


@torch.no_grad()
def test_a_file_that_grows_time_more_often_is_cut_to_the_last_frames():
    longer, usual = published(first_grow=2), published()
    model = TinyWanDecoder.from_tensors(dict(longer))
    assert torch.equal(model.state_dict()["decoder.7.conv.weight"], longer["decoder.7.conv.weight"][256:])
    assert model.state_dict().keys() == usual.keys()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no tiny decoder of TAEHV's layout"):
        TinyWanDecoder.from_tensors({"x": torch.zeros(1)}, "x.pth")
    with pytest.raises(ValueError, match="other latents than Wan 2.1's: 2 tensors differ, first decoder.22"):
        patched = {"decoder.22.weight": torch.zeros(12, 64, 3, 3), "decoder.22.bias": torch.zeros(12)}  # of larger patches
        TinyWanDecoder.from_tensors(published(48) | patched, "taew2_2.pth")
