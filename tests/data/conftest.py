import pytest
from packing_helpers import lines_file, stories


@pytest.fixture
def corpus_file(tmp_path):
    return lines_file(tmp_path / "stories.txt", stories(300))
