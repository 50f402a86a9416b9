import zipfile

import numpy as np
import pytest

from jaxmeta.networks.weights import read_arrays

SHAPES = {"net/w": (3, 2), "net/b": (2,)}
GOOD = {"net/w": np.arange(6, dtype=np.float32).reshape(3, 2), "net/b": np.ones(2, np.float32)}


def written(folder, **changes):
    """A file of the arrays, with some of them replaced; None leaves one out."""
    arrays = {name: x for name, x in (GOOD | changes).items() if x is not None}
    np.savez(folder / "weights.npz", **arrays)
    return folder / "weights.npz"


def test_arrays_come_back_by_name(tmp_path):
    found = read_arrays("weights", str(written(tmp_path)), SHAPES)
    assert list(found) == list(SHAPES)
    for name, x in GOOD.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net/b": None}, "lacks the array 'net/b'"),
        ({"other": np.ones(2)}, "holds the array 'other'"),
        ({"net/w": np.ones((2, 3))}, r"the array 'net/w' has shape \(2, 3\); it must be \(3, 2\)"),
        ({"net/w": np.ones((3, 2), int)}, "the array 'net/w' has the type int64"),
        ({"net/b": np.array(["a", "b"])}, "the array 'net/b' has the type <U1"),
        ({"net/b": np.array([1.0, np.nan])}, "the array 'net/b' holds a number that is not finite"),
        ({"net/b": np.array([1.0, np.inf])}, "the array 'net/b' holds a number that is not finite"),
        (
            {"net/b": np.array([1.0, 1e300])},
            "the array 'net/b' holds a number that is not finite, or not as float32",
        ),
        ({"net/b": np.array([{}, {}], object)}, "the array 'net/b' cannot be read .*allow_pickle"),
    ],
)
def test_a_wrong_array_is_refused_by_file_and_name(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"weights='.*weights.npz':? {message}"):
        read_arrays("weights", path, SHAPES)


def test_a_damaged_file_is_refused(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    for size in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"weights='.*weights.npz' is no .npz file"):
            read_arrays("weights", path, SHAPES)
    at = whole.index(GOOD["net/w"].tobytes())
    path.write_bytes(whole[: at + 4] + b"\xff" + whole[at + 5 :])
    with pytest.raises(ValueError, match="the array 'net/w' cannot be read .*CRC"):
        read_arrays("weights", path, SHAPES)


def test_another_kind_of_file_is_refused(tmp_path):
    text = tmp_path / "weights.npz"
    text.write_text("no arrays")
    with pytest.raises(ValueError, match="is no .npz file"):
        read_arrays("weights", text, SHAPES)
    with open(text, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="holds a single array"):
        read_arrays("weights", text, SHAPES)
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("net/w.npy", "no array")
        archive.writestr("net/b.npy", "no array")
    with pytest.raises(ValueError, match="the array 'net/w' "):
        read_arrays("weights", text, SHAPES)


def test_a_path_to_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights='.*nowhere.npz' does not exist"):
        read_arrays("weights", tmp_path / "nowhere.npz", SHAPES)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_arrays("weights", tmp_path, SHAPES)
    with pytest.raises(TypeError, match="weights=3 must be a path"):
        read_arrays("weights", 3, SHAPES)
