"""How fast dfqs is beside others: `python -m benchmarks [ROW...]`, from the repository's folder. See README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from speed.main import main

if __name__ == "__main__":
    sys.exit(main())
