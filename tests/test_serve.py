"""The operator's side: the config file, logs, and what the trials send."""

import json
import logging

import pytest

from worldmodel.server.config import ConfigError, ServeConfig
from worldmodel.server.logs import JsonFormatter, TextFormatter
from worldmodel.trials.fuzz import Fuzzer
from worldmodel.trials.report import Report


def test_a_config_file_says_everything(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text(
        '[model]\nname = "tiny"\nsteps = 4\n[listen]\nport = 9000\n'
        '[server]\nworlds = 4\ngrace_s = 5\nallowed_origins = ["https://a.example"]\n'
        f'[autosave]\nfolder = "{tmp_path}"\nevery_s = 3\n[log]\nformat = "json"\n'
    )
    config = ServeConfig.read(path)
    assert config.model.steps == 4 and config.listen.port == 9000 and config.listen.host == "127.0.0.1"
    assert config.server.worlds == 4 and config.server.grace_s == 5 and config.server.allowed_origins == ("https://a.example",)
    assert config.server.autosave.folder == tmp_path and config.server.autosave.every_s == 3 and config.server.line == 16
    assert ServeConfig() == ServeConfig.from_dict({}) and ServeConfig().server.autosave is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nworld = 4", "server.world; known entries"),
        ("[sever]\nworlds = 4", r"section \[sever\]"),
        ("worlds = 4", r"section \[worlds\]"),
        ('[server]\nworlds = "4"', "server.worlds is '4'; it should be int"),
        ("[server]\nworlds = true", "it should be int"),
        ("[server]\nworlds = 0", "worlds is 1 or more"),
        ('[server]\naccess_token = "short"', "16 characters"),
        ('[log]\nformat = "xml"', "text or json"),
        ("[autosave]\nevery_s = 3", r"\[autosave\]"),
        ("[server", "is not TOML"),
    ],
)
def test_what_a_config_cannot_say_is_named(tmp_path, text, says):
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        ServeConfig.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        ServeConfig.read(tmp_path / "none.toml")


def test_a_line_of_the_log_is_an_object():
    logger = logging.getLogger("worldmodel.test")
    record = logger.makeRecord(logger.name, logging.INFO, "f", 1, "enter %d", (3,), None, extra={"session": "ab", "waited_s": 1.5})
    line = json.loads(JsonFormatter().format(record))
    assert line["event"] == "enter 3" and line["session"] == "ab" and line["waited_s"] == 1.5 and line["level"] == "INFO"
    assert TextFormatter().format(record).endswith("enter 3 session=ab waited_s=1.5")


def test_the_fuzzer_is_malformed_varied_and_repeats_itself():
    first, second = Fuzzer(7), Fuzzer(7)
    words = [first.malformed() for _ in range(500)]
    assert words == [second.malformed() for _ in range(500)] and len({str(w) for w in words}) > 300
    assert any(isinstance(w, bytes) for w in words)
    kinds = {json.loads(first.valid_text())["type"] for _ in range(300)}
    assert {"action", "step", "ack", "reset", "config", "rewind", "fork", "switch", "discard", "save", "ask", "pause", "ping"} <= kinds


def test_a_report_is_a_table_with_what_holds_and_what_does_not():
    report = Report("Load", ("worlds", "frames/s"))
    report.add(1, "16.0")
    report.claims += [("all get alike", True), ("fast", False)]
    text = report.markdown()
    assert "| worlds | frames/s |\n| --- | --- |\n| 1 | 16.0 |" in text and "- **no**: fast" in text and not report.passed
