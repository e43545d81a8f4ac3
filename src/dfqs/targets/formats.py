"""The configuration formats, by name."""

from dfqs.targets.contract import Format
from dfqs.targets.ini import Ini
from dfqs.targets.jsonc import Jsonc
from dfqs.targets.values import ConfigText
from dfqs.targets.yaml_edit import Yaml

FORMATS: dict[Format, ConfigText] = {"json": Jsonc(), "yaml": Yaml(), "ini": Ini()}
