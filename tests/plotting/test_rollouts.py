import matplotlib.image
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest

from jaxmeta import plotting
from tests.plotting.shared import colours


def test_a_rollout_of_images_shows_each_channel_in_its_colour(tmp_path):
    images = np.zeros((5, 4, 3, 2))
    images[:, 0, 0, 0] = images[:, 3, 2, 1] = 1.0
    last = np.array([0, 1, 0, 0, 1], bool)
    plotting.rollout(tmp_path / "grid.png", images, np.arange(5), np.arange(5.0), last)
    seen, _ = colours(tmp_path / "grid.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen
    # One channel alone, and no picture of what is not there.
    plotting.rollout(tmp_path / "empty.png", 0 * images[..., 0], np.arange(5), np.zeros(5), last)
    seen, _ = colours(tmp_path / "empty.png")
    assert plotting.ORANGE not in seen


def test_a_flat_image_is_drawn_as_the_image(tmp_path):
    image = np.zeros((3, 4, 3))
    image[1, 2, 1] = 1.0
    rest = np.arange(3), np.zeros(3), np.zeros(3, bool)
    plotting.rollout(tmp_path / "image.png", image, *rest)
    plotting.rollout(tmp_path / "flat.png", image.reshape(3, -1), *rest, shape=(4, 3))
    same = [matplotlib.image.imread(tmp_path / f"{x}.png") for x in ("image", "flat")]
    np.testing.assert_array_equal(*same)
    with pytest.raises(ValueError, match=r"shape=\(5, 5\) must be"):
        plotting.rollout(tmp_path / "x.png", image, *rest, shape=(5, 5))


def test_a_rollout_of_vectors_shows_every_number_in_its_own_range(tmp_path):
    steps = np.arange(40.0)
    vectors = np.stack([1e6 * steps, steps, np.ones(40)], axis=1)
    actions = np.stack([np.sin(steps), np.cos(steps)], axis=1)
    plotting.rollout(tmp_path / "rollout.png", vectors, actions, steps, steps == 20)
    seen, pixels = colours(tmp_path / "rollout.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen  # an action has two components
    # Both rows that change end at the light end of the scale, though one is a million times larger.
    light = np.array(matplotlib.colormaps["cividis"](1.0, bytes=True)[:3])
    is_light = (pixels == light).all(1).reshape(-1, 9 * 120)
    assert (is_light.sum(1) > 10).sum() > 120


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (2,), (7,), ()])
def test_an_animation_has_a_frame_a_step_up_to_what_is_asked(shape, tmp_path):
    rng = np.random.default_rng(0)
    steps, last = 6, np.arange(6) % 4 == 3
    goal = np.ones(2) if shape == (2,) else None
    stream = rng.random((steps, *shape)), rng.random(steps), last
    for num_frames, expected in ((60, 6), (3, 3)):
        path = tmp_path / f"{num_frames}.gif"
        plotting.animation(path, *stream, goal=goal, num_frames=num_frames)
        with PIL.Image.open(path) as image:
            assert image.n_frames == expected
            assert image.size == (512, 256)


def test_an_animation_shows_the_return_of_the_episode_so_far(tmp_path):
    """Two streams that differ in a reward look the same up to it, and not after it."""
    obs, last = np.zeros((6, 3)), np.array([0, 0, 1, 0, 0, 1], bool)
    frames = []
    for reward in (np.ones(6), np.array([1.0, 1, 1, 1, 0, 1])):
        path = tmp_path / "stream.gif"
        plotting.animation(path, obs, reward, last)
        with PIL.Image.open(path) as image:
            frames.append([np.asarray(f.convert("L")) for f in PIL.ImageSequence.Iterator(image)])
    same = [np.array_equal(a, b) for a, b in zip(*frames, strict=True)]
    assert same == [True] * 4 + [False] * 2


def test_arguments_of_an_animation_are_checked_by_name(tmp_path):
    obs, zeros, last = np.zeros((4, 2)), np.zeros(4), np.zeros(4, bool)
    for stream, options, message in (
        ((dict(image=obs), zeros, last), {}, "observations has several parts; draw one"),
        ((obs, zeros[:3], last), {}, "rewards has shape"),
        ((obs, zeros, last[:2]), {}, "last has shape"),
        ((obs, zeros, last), dict(num_frames=0), "num_frames=0 must be at least 1"),
        ((obs, zeros, last), dict(frames_per_second=0), "frames_per_second=0 must be at least 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            plotting.animation(tmp_path / "x.gif", *stream, **options)
