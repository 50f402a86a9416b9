import matplotlib.image
import numpy as np
import PIL.Image
import pytest

from jaxmeta import plotting
from tests.plotting.shared import colours


def straight(points):
    """``points`` as the observations of one task with two rounds of one stream, and where an episode begins."""
    obs = np.zeros((1, 2, 1, len(points), 2))
    obs[..., 0] = points
    first = np.zeros(obs.shape[:-1], bool)
    first[..., 0] = True
    return obs, first


def test_trajectories_lift_the_pen_between_episodes(tmp_path):
    """One path that jumps from right to left: drawn as one episode it crosses the middle, as two it does not."""
    obs, first = straight([-2.0, -1.0, 1.0, 2.0])
    plotting.trajectories(tmp_path / "one.png", obs, first)
    first[..., 2] = True
    plotting.trajectories(tmp_path / "two.png", obs, first)
    dark = []
    for name in ("one.png", "two.png"):
        image = matplotlib.image.imread(tmp_path / name)[..., :3]
        height, width, _ = image.shape
        column = image[height // 4 : -height // 5, int(0.66 * width)]  # x = 0.3: no grid line
        dark.append(column.mean(axis=1).min() < 0.8)
    assert dark == [True, False]


def test_a_path_grows_stronger(tmp_path):
    obs, first = straight(np.linspace(-1, 1, 60))
    plotting.trajectories(tmp_path / "path.png", obs, first)
    image = matplotlib.image.imread(tmp_path / "path.png")[..., :3]
    height, width, _ = image.shape
    row = image[height // 4 : -height // 4].min(axis=(0, 2))  # the darkest of each column
    left, right = row[int(0.3 * width)], row[int(0.8 * width)]
    assert right < left - 0.2


def test_trajectories_draw_goals_and_any_number_of_tasks(tmp_path):
    obs = np.random.default_rng(0).normal(size=(4, 3, 2, 6, 2))
    first = np.zeros((4, 3, 2, 6), bool)
    first[..., 0] = True
    plotting.trajectories(tmp_path / "goals.png", obs, first, goals=np.zeros((4, 2)))
    plotting.trajectories(tmp_path / "free.png", obs, first, labels=("a", "b"))
    seen, pixels = colours(tmp_path / "goals.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen
    black = [
        np.mean(np.all(colours(tmp_path / x)[1] == 0, axis=1)) for x in ("goals.png", "free.png")
    ]
    assert black[0] > black[1]
    assert len(pixels) > 10**5


@pytest.mark.slow
def test_a_film_shows_every_round(tmp_path):
    obs = np.random.default_rng(0).normal(size=(1, 3, 2, 6, 2))
    first = np.zeros((1, 3, 2, 6), bool)
    path = tmp_path / "film.gif"
    plotting.adaptation_film(path, obs, first, goals=np.zeros((1, 2)), frames_per_round=2)
    with PIL.Image.open(path) as image:
        assert 6 <= image.n_frames <= 9  # frames that do not differ are joined


def test_walks_are_drawn_episode_by_episode(tmp_path):
    onehot = np.eye(9)[[[0, 1, 2, 0, 3, 6]]]
    cells = plotting.cells_of(onehot, 3)
    np.testing.assert_array_equal(cells[0], [[0, 0], [1, 0], [2, 0], [0, 0], [0, 1], [0, 2]])
    last = np.array([[0, 0, 1, 0, 0, 1]], bool)
    told = dict(size=3, goals=np.array([[2, 2]]))
    walls = np.zeros((1, 3, 3), bool)
    walls[0, 1, 1] = True
    plotting.walks(tmp_path / "two.png", cells, last, **told)
    plotting.walks(tmp_path / "one.png", cells, last, **told, num_episodes=1)
    plotting.walks(tmp_path / "told.png", cells, last, **told, walls=walls, returns=np.ones((1, 2)))
    seen, two = colours(tmp_path / "two.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen
    assert len(two) > 1.5 * len(colours(tmp_path / "one.png")[1])
    assert len(colours(tmp_path / "told.png")[0]) > 10
