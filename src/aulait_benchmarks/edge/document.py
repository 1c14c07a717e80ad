"""What writers and readers of the study's document share; no torch is behind it."""

from __future__ import annotations

from typing import Final

from aulait.core.files import JsonObject

StudyLine = JsonObject
"""A step or a round of the document: a plain JSON object, as ``study.edge`` describes it."""

StudyDocument = JsonObject
"""What ``study.edge`` returns, or what is read back from its JSON."""

HERE: Final = "this machine"
EDGE_DEVICE: Final = "jetson-orin"
REFERENCE_DEVICE: Final = "a100"
EDGE_DEVICES: Final = ("phone", "raspberry-pi-5", EDGE_DEVICE)


def rounds_on_usual_links(document: StudyDocument) -> list[StudyLine]:
    """Rounds of every machine on its usual link."""
    return [line for line in document["rounds"]
            if line["link"] == document["usual_links"].get(line["device"])]
