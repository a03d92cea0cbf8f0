"""Conditions on labels mean what Ray means by them, and one more node can always be left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config_file import load_config
from common.errors import ConfigError
from common.label_selector import NODE_ID, Condition, avoiding, unmet

VALUES = st.sampled_from(["a", "b", "c", "d"])
CONDITIONS = st.builds(
    lambda values, negated, is_list: (values if is_list else values[:1], negated, is_list),
    st.lists(VALUES, min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)


def written(values, negated, is_list, comma=", "):
    return "!" * negated + (f"in({comma.join(values)})" if is_list else values[0])


@given(CONDITIONS, st.sampled_from([", ", ","]), st.none() | VALUES)
def test_a_condition_holds_as_it_reads(condition, comma, value):
    values, negated, is_list = condition
    text = written(values, negated, is_list, comma)
    is_among = any(value == one for one in values)
    assert Condition.read(text).holds(value) == (not is_among if negated else is_among)
    assert Condition.read(str(Condition.read(text))) == Condition.read(text)


def test_all_conditions_must_hold():
    selector = {"zone": "in(a, b)", "market": "!spot"}
    assert unmet(selector, {"zone": "b"}) == []
    assert unmet(selector, {"zone": "c", "market": "spot"}) == ["zone", "market"]
    assert unmet(selector, {"market": "on-demand"}) == ["zone"]
    assert unmet({}, {"zone": "c"}) == []


@given(st.none() | CONDITIONS, st.lists(VALUES, unique=True), VALUES)
def test_avoiding_leaves_out_that_node_and_no_other(condition, nodes, avoided):
    selector = {"zone": "a"} | ({NODE_ID: written(*condition)} if condition else {})
    narrowed = avoiding(selector, avoided)

    def chosen(wanted):
        return {node for node in nodes if not unmet(wanted, {"zone": "a", NODE_ID: node})}

    if narrowed is None:
        assert chosen(selector) <= {avoided}
    else:
        assert chosen(narrowed) == chosen(selector) - {avoided}
        assert unmet(narrowed, {NODE_ID: "elsewhere"})[:1] == ["zone"], "the role's own conditions stay"


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ('{zone = "in(a"}', "'in(a' is none of the four legal forms: 'spot', '!spot', 'in(spot, on-demand)'"),
        ('{zone = ""}', "'' is none"),
        ('{zone = "in()"}', "'in()' is none"),
        ('{zone = "(a, b)"}', "'(a, b)' is none"),
        ('{zone = "!!a"}', "'!!a' is none"),
        ('{zone = "a b"}', "'a b' is none"),
        ('{zone = "a\\n"}', "is none"),
        ('{"-zone" = "a"}', "'-zone' cannot be the name of a label"),
        ('{"a/b/c" = "a"}', "'a/b/c' cannot be the name"),
    ],
)
def test_what_ray_could_not_read_is_told_when_the_configuration_is_read(tiny, selector, said):
    with pytest.raises(ConfigError) as raised:
        tiny(f"rollout.label_selector={selector}")
    assert said in str(raised.value)
    assert "rollout.label_selector" in str(raised.value)


def test_a_selector_survives_being_written_and_read(tiny, tmp_path):
    from common.config_file import to_toml

    config = tiny('rollout.label_selector={"ray.io/accelerator-type" = "in(H100, A100)", market-type = "!spot"}')
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.toml", []) == config


@pytest.mark.ray
@given(CONDITIONS, st.sampled_from([", ", ","]), st.sampled_from(["zone", "ray.io/node-id", "a.b-c.d/e_f"]))
def test_what_is_legal_here_is_legal_for_ray(condition, comma, key):
    from ray._private.label_utils import validate_label_selector

    assert validate_label_selector({key: written(*condition, comma)}) is None
