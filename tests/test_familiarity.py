"""How far a start picture is from what weights know: the distance, its calibration, its file, and who is told."""

import io
import json

import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image
from serving import Client, running
from small import picture, small_model
from test_server import request

from worldmodel.cli import main
from worldmodel.familiarity import FAMILIARITY_NAME, NEARER, Familiarity, KnownPictures, picture_statistics
from worldmodel.images import load_start_image
from worldmodel.loading import packaged_models
from worldmodel.model import ModelError, WorldModel
from worldmodel.server import protocol as p
from worldmodel.server.app import create_app

D = len(picture_statistics(picture()))


@pytest.fixture
def known():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(D, D)) / D**0.5 + np.eye(D)
    draw = lambda n: rng.normal(size=(n, D)) @ mix + 3  # noqa: E731
    trained, unseen = draw(2000), draw(1000)
    return KnownPictures.fit(trained, unseen, shrinkage=0.1), trained, unseen


def test_statistics_do_not_depend_on_side_or_mirror():
    smooth = np.asarray(Image.fromarray(picture(1, (8, 8))).resize((128, 128), Image.Resampling.BICUBIC))
    here = picture_statistics(smooth)
    assert np.isfinite(here).all()
    np.testing.assert_allclose(picture_statistics(smooth[:, ::-1]), here, atol=1e-9)
    np.testing.assert_allclose(picture_statistics(smooth.repeat(3, 0).repeat(3, 1)), here, atol=1e-9)
    noisy = np.clip(smooth + np.random.default_rng(0).normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    assert (picture_statistics(noisy)[:3] > here[:3] + 0.3).all(), "grain is detail where there was little"
    plain = picture_statistics(np.full((128, 128, 3), 77, np.uint8))
    assert plain[0] == pytest.approx(np.log(2e-3), abs=1e-3) and plain[30] == pytest.approx(0, abs=1e-9), "no detail, and one colour"


def test_the_distance_is_mahalanobis_and_one_in_a_hundred_is_beyond_it(known):
    known, trained, unseen = known
    deviation = np.diag(trained.std(0))
    covariance = deviation @ (0.9 * np.corrcoef(trained.T) + 0.1 * np.eye(D)) @ deviation
    away = unseen - trained.mean(0)
    wanted = np.sqrt(np.einsum("nd,de,ne->n", away, np.linalg.inv(covariance), away) / D)
    wanted /= np.quantile(wanted, NEARER)
    found = [known.judge_statistics(row) for row in unseen]
    np.testing.assert_allclose([f.distance for f in found], wanted, rtol=1e-4)
    assert sum(not f.familiar for f in found) == round((1 - NEARER) * len(unseen))
    assert known.judge_statistics(np.median(trained, 0)).nearer < 0.02
    far = known.judge_statistics(trained.mean(0) + 9 * trained.std(0))
    assert far.nearer == 1 and "You can walk" in far.notice and found[np.argmin(wanted)].notice is None


def test_the_file_goes_with_the_weights(known, tmp_path):
    model = small_model()
    assert model.familiarity(picture()) is None, "these weights do not say"
    model.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none" / FAMILIARITY_NAME).exists() and WorldModel.from_pretrained(tmp_path / "none").known_pictures is None
    known[0].save(tmp_path / "none")
    loaded = WorldModel.from_pretrained(tmp_path / "none")
    assert loaded.familiarity(picture()) == known[0].judge(load_start_image(Image.fromarray(picture()), model.size))
    loaded.with_steps(3).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / FAMILIARITY_NAME).read_bytes() == (tmp_path / "none" / FAMILIARITY_NAME).read_bytes()
    assert (tmp_path / "again" / FAMILIARITY_NAME).stat().st_size < 20_000
    (tmp_path / "again" / FAMILIARITY_NAME).write_bytes(b"something else")
    with pytest.raises(ModelError, match="familiarity.safetensors"):
        WorldModel.from_pretrained(tmp_path / "again")
    KnownPictures(np.zeros(3), np.eye(3), np.ones(2)).save(tmp_path / "again")
    with pytest.raises(ModelError, match="make it again"):
        WorldModel.from_pretrained(tmp_path / "again")


def test_the_terminal_says_it_and_goes_on(known, tmp_path, capsys):
    model = small_model()
    model.known_pictures = known[0]
    model.save_pretrained(tmp_path / "model")
    Image.fromarray(picture()).save(tmp_path / "noise.png")
    clip, start = tmp_path / "clip.mp4", ["--image", str(tmp_path / "noise.png"), "--script", "w*4"]
    assert main(["generate", "--model", str(tmp_path / "model"), *start, "--out", str(clip)]) == 0
    assert "unlike the worlds" in capsys.readouterr().err and clip.exists()


# -- over the wire ---------------------------------------------------------------------------------------------------------
class JudgingModel(FakeModel):
    """Knows pictures that are dark."""

    def familiarity(self, image):
        return Familiarity(float(np.asarray(image).mean()) / 100, 0.5)


def upload(host, colour):
    file = io.BytesIO()
    Image.new("RGB", (96, 64), colour).save(file, "PNG")
    return json.loads(request(host, "POST", "/api/v1/images", file.getvalue())[1])["id"]


def settled(client):
    """The newest state of a world that is made."""
    assert client.pump(lambda c: any(isinstance(m, p.WorldState) and not m.loading for m in c.messages))
    return [m for m in client.messages if isinstance(m, p.WorldState)]


def test_a_visitor_is_told_in_ready_and_with_the_world(tmp_path):
    with running(create_app(JudgingModel(tmp_path, size=(64, 96)))) as host:
        odd, known = upload(host, (200, 30, 200)), upload(host, (20, 30, 40))
        with Client(host, hello=False) as client:
            client.send(p.Hello(proto=p.PROTOCOL, image=odd))
            ready = client.expect(p.Ready)
            assert "unlike the worlds" in ready.notice
            assert {m.notice for m in settled(client)} == {ready.notice}, "it stays while the world is made"
            client.hold("KeyW")
            client.play(4)
            for start in (p.Reset(image=known), p.Reset(image=odd), p.Reset(gallery="meadow")):
                client.messages.clear()
                client.send(start)
                assert (settled(client)[-1].notice == ready.notice) == (start.image == odd)
            token = ready.resume
        with Client(host, resume=token) as client:
            assert client.expect(p.Ready).notice is None


def test_a_model_that_does_not_say_gives_no_notice(tmp_path):
    with running(create_app(FakeModel(tmp_path, size=(64, 96)))) as host, Client(host, hello=False) as client:
        client.send(p.Hello(proto=p.PROTOCOL, image=upload(host, (250, 250, 250))))
        assert client.expect(p.Ready).notice is None and settled(client)[-1].notice is None


# -- the packaged weights ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shipped():
    if "tiny" not in packaged_models():
        pytest.skip("no packaged weights")
    model = WorldModel.from_pretrained("tiny")
    assert (packaged_models()["tiny"] / FAMILIARITY_NAME).stat().st_size < 20_000
    return model


def test_the_gallery_is_familiar(shipped):
    assert all(shipped.familiarity(place.image_path).familiar for place in shipped.gallery)


def test_scenes_that_were_never_seen_are_familiar(shipped):
    pytest.importorskip("panda3d")
    from distill.familiarity import pictures_of_scene, softened, through_jpeg

    pictures = [x for seed in range(100_500, 100_504) for x in pictures_of_scene(seed)[:2]]
    for change in (lambda x: x, lambda x: through_jpeg(x, 80), lambda x: softened(x, 0.8)):
        assert sum(shipped.familiarity(change(x)).familiar for x in pictures) >= 7


def test_other_pictures_are_not(shipped):
    from distill.odd_pictures import made_pictures, packaged_pictures

    for kind, pictures in made_pictures().items():
        assert not any(shipped.familiarity(x).familiar for x in pictures), kind
    photographs = [shipped.familiarity(x) for x in packaged_pictures().get("photographs", [])]
    assert sum(f.familiar for f in photographs) <= len(photographs) // 4
