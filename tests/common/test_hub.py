"""One string names a folder, or a model on the hub at a revision."""

import pytest

from common.errors import ConfigError
from common.hub import join_revision, split_revision
from common.modeling import load_policy
from common.text import load_classifier_tokenizer, load_tokenizer


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_a_revision_comes_back(revision):
    assert split_revision(join_revision("someone/model", revision)) == ("someone/model", revision)


def test_a_folder_has_no_revision_whatever_its_name(tmp_path):
    folder = tmp_path / "model@home"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


@pytest.mark.parametrize("load", [load_policy, load_tokenizer, load_classifier_tokenizer])
def test_a_model_that_is_not_there_is_named_with_what_to_check(load):
    with pytest.raises(
        ConfigError, match=r"cannot load 'nobody/nothing@v1'.*check the name, the revision and the network"
    ):
        load("nobody/nothing@v1")
