"""The digest of a measurement's code: it changes with what is imported, and not with words."""

import pytest

from resjax.sweep import code


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Of `measuring_`, which imports `formula_`, when these are their sources."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(code, "OURS", ("measuring_", "formula_"))

    def of(measuring, formula):
        (tmp_path / "measuring_.py").write_text(measuring)
        (tmp_path / "formula_.py").write_text(formula)
        code.digest.cache_clear()
        return code.digest("measuring_")

    yield of
    code.digest.cache_clear()


def test_words_have_no_part_in_it(digest):
    within = 'def measure():\n    """Says it."""\n    from formula_ import f\n    return f()\n'
    plain = digest(within, "def f():\n    return 1\n")
    assert plain == digest(
        within.replace("Says it.", "Says it again."), '"""A formula."""\ndef f():\n    return 1  # one\n'
    )
    assert plain != digest(within, "def f():\n    return 2\n")  # imported within a function
    assert plain != digest(within.replace("f()", "-f()"), "def f():\n    return 1\n")
