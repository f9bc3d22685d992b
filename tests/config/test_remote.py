"""A judge as the trainer sees it: which servers, asked how, and what a watched one cannot do."""

from __future__ import annotations

import logging

import pytest
import trustme

from rs_aligner.config import (
    TrainRSConfig,
    load_config,
)
from tests.config.conftest import compose, problems

pytestmark = pytest.mark.timeout(60)


def test_padding_below_the_longest_sequence_is_refused(tree):
    changed = tree(**{"remote_rm.pad_to_length": 256, "model.encoder_seq_length": 400})
    assert problems(changed) == [
        "remote_rm.pad_to_length is 256: should be null or at least 400 (model.encoder_seq_length)"
    ]


def test_endpoints_are_texts_or_sections_and_take_the_models_name(tree):
    changed = tree(
        **{
            "remote_rm.endpoints": [
                "a:1",
                {"ip": "b", "port": 2, "name": "own"},
                "http://[::1]:3",
                {"ip": "c", "port": 4},
                "https://d.example.com/rm/",
                {"ip": "[::1]", "port": 6, "https": True, "path": "/rm"},
            ],
            "remote_rm.reward_model.name": "judge",
        }
    )
    servers = load_config(changed, TrainRSConfig).remote_rm.servers
    assert [(one.ip, one.port, one.name) for one in servers] == [
        ("a", 1, "judge"),
        ("b", 2, "own"),
        ("::1", 3, "judge"),
        ("c", 4, "judge"),
        ("d.example.com", 443, "judge"),
        ("[::1]", 6, "judge"),
    ]
    assert [one.url for one in servers] == [
        "http://a:1",
        "http://b:2",
        "http://[::1]:3",
        "http://c:4",
        "https://d.example.com:443/rm",
        "https://[::1]:6/rm",
    ]
    alone = load_config(tree(**{"remote_rm.reward_model.port": 7}), TrainRSConfig).remote_rm
    assert [one.port for one in alone.servers] == [7]
    composed = compose("train_rs", ["remote_rm.endpoints=[node1:5555,node2:5556]"])
    composed.merge_with(tree())
    assert [one.port for one in load_config(composed, TrainRSConfig).remote_rm.servers] == [5555, 5556]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoints": ["judge-node"]}, "'judge-node' should be \"host:port\""),
        ({"endpoints": 7}, 'should be a list of "host:port"'),
        ({"endpoints": ["grpc://a:1"]}, "the scheme should be http:// or https://"),
        ({"endpoints": ["https://a", {"ip": "a", "port": 443, "https": True}]}, "names a server twice"),
        (
            {"endpoints": ["a:1"], "reward_model": {"https": True}},
            "remote_rm.reward_model.https is true: remote_rm.endpoints lists other servers",
        ),
        (
            {"reward_model": {"ip": "https://a"}},
            'remote_rm.reward_model.ip is "https://a": should be a host\'s name or address alone',
        ),
        ({"reward_model": {"ip": "a:5555"}}, "a URL is given in endpoints"),
        (
            {"reward_model": {"path": "rm"}},
            'remote_rm.reward_model.path is "rm": should begin with a slash',
        ),
        ({"ca_file": "nowhere.pem"}, 'remote_rm.ca_file is "nowhere.pem": there is no such file'),
        ({"ca_file": __file__}, "there are no certificates in it that can be read; should be PEM"),
        ({"endpoints": ["a:1", "a:1"]}, "names a server twice"),
        ({"endpoints": ["a:1", 7]}, "remote_rm.endpoints.1 is 7"),
        ({"endpoints": ["a:0"]}, "remote_rm.endpoints.0.port is 0"),
        ({"endpoints": [{"ip": "a", "port": 65536}]}, "remote_rm.endpoints.0.port is 65536"),
        ({"endpoints": [{"ip": "a", "prot": 1}]}, "remote_rm.endpoints.0.prot is not a key"),
        (
            {"endpoints": ["a:1"], "reward_model": {"ip": "b"}},
            'remote_rm.reward_model.ip is "b": remote_rm.endpoints lists other servers',
        ),
        ({"endpoints": ["a:1"], "reward_model": {"port": 2}}, "remote_rm.reward_model.port is 2"),
        ({"in_process": True}, "remote_rm.judge must be set"),
        ({"judge": {"name": "exact_answer"}}, "a server brings its own judge"),
        (
            {"in_process": True, "judge": {}},
            "remote_rm.judge: nothing is set; set one of remote_rm.judge.name",
        ),
        (
            {"in_process": True, "judge": {"name": "exact_answer"}, "endpoints": ["a:1"]},
            "remote_rm.in_process is true: no server is asked; leave remote_rm.endpoints empty",
        ),
        ({"in_process": True, "judge": {"name": "exact_answer"}, "mode": "tokens"}, "gets texts"),
        ({"max_queued": 8}, "should be at least remote_rm.max_batch_size = 64"),
        ({"token_file": "nowhere"}, 'remote_rm.token_file is "nowhere": there is no such file'),
        ({"on_failure": "zero"}, "should be 'drop', 'retry' or 'abort'"),
        ({"max_failed_fraction": 1.5}, "should be less than or equal to 1"),
        ({"give_up_after": 0}, "should be greater than 0"),
        ({"max_attempts": 0}, "should be greater than or equal to 1"),
    ],
)
def test_a_judges_settings_that_cannot_work_say_what_would(changes, message, tree):
    lines = problems(tree(**{f"remote_rm.{key}": value for key, value in changes.items()}))
    assert len(lines) == 1
    assert message in lines[0]


def test_one_server_may_be_named_in_both_ways(tree):
    changed = tree(
        **{"remote_rm.endpoints": ["a:1", "b:2"], "remote_rm.reward_model": {"ip": "b", "port": 2}}
    )
    assert len(load_config(changed, TrainRSConfig).remote_rm.servers) == 2


def test_a_file_of_an_authority_without_tls_is_told(tree, caplog, tmp_path):
    trustme.CA().cert_pem.write_to_path(file := tmp_path / "authority.pem")
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(**{"remote_rm.ca_file": str(file)}), TrainRSConfig)
    assert "remote_rm.ca_file has no effect: no server is asked by https://" in caplog.text
    caplog.clear()
    load_config(tree(**{"remote_rm.ca_file": str(file), "remote_rm.reward_model.https": True}), TrainRSConfig)
    assert "no effect" not in caplog.text


def test_a_watched_judge_is_told_what_it_cannot_do(tree, caplog):
    assert problems(tree(**{"watched_rm.on_failure": "abort"})) == [
        'watched_rm.on_failure is "abort": a watched judge ends no run; set it to drop or retry'
    ]
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(**{"watched_rm.max_failed_fraction": 0.1}), TrainRSConfig)
    assert "watched_rm.max_failed_fraction has no effect" in caplog.text
    caplog.clear()
    load_config(tree(**{"watched_rm.reward_model.port": 5556}), TrainRSConfig)
    load_config(tree(**{"remote_rm.max_failed_fraction": 0.1}), TrainRSConfig)
    assert "has no effect" not in caplog.text
