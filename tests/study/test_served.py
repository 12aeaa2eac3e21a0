"""Audits of adapters that a server holds: what is said without margins, what is refused, what is given back."""

import json
from dataclasses import replace

import pytest

import truing
from servers.lora_server import serving
from study.fake_judge import FakeJudge
from test_adapter_files import write_adapter
