import dataclasses

from jaxmeta.algorithms import ALGORITHMS


def test_modules_offer_what_the_script_reads():
    assert "maml" in ALGORITHMS
    for name, module in ALGORITHMS.items():
        assert dataclasses.is_dataclass(module.Config)
        assert hasattr(module.Hyper, "_fields")
        assert callable(getattr(module, name))
