"""Every message that docs/troubleshooting.md lists is one of the program."""

import re

from tests.conftest import REPOSITORY


def test_messages_are_those_of_the_source():
    source = "\n".join(path.read_text() for path in sorted((REPOSITORY / "vivit_jax").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    messages = [message for row in rows for message in re.findall("`([^`]+)`", row)]
    assert len(messages) > 40
    parts = [(message, part.strip()) for message in messages for part in message.split("...")]
    absent = [f"{message!r}: {part!r}" for message, part in parts if part and part not in source]
    assert not absent, "\n".join(absent)
