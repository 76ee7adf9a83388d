"""Print every choice and every key with its meaning and default: python -m vrnn_lab.describe."""

import ast
import sys
from pathlib import Path

import yaml

from vrnn_lab.cli.arguments import run_command
from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF, groups, options, package_of

USAGE = """python -m vrnn_lab.describe [group] [group=option] ...

Without arguments all choices; for a group its options; for an option its keys with meaning and default.
  python -m vrnn_lab.describe
  python -m vrnn_lab.describe optim
  python -m vrnn_lab.describe model=latent_ode data=table
  python -m vrnn_lab.describe config          the keys that belong to no group"""


def summary(target: str) -> str:
    """Return the docstring of what a `_target_` names, read from its source so that nothing heavy is imported."""
    module, _, name = target.rpartition(".")
    file = Path(__file__).parent.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not module.startswith("vrnn_lab") or not file.exists():
        return target
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return ast.get_docstring(node) or target
    return target


def option(group: str, name: str) -> str:
    """Return the description of one option of a group; raise ConfigError where there is no such option."""
    if name not in options(group):
        raise ConfigError(
            f"{group}={name}: there is no such option.{did_you_mean(name, options(group))} "
            f"Allowed: {', '.join(options(group))}"
        )
    text = (CONF / group / f"{name}.yaml").read_text()
    target = (yaml.safe_load(text) or {}).get("_target_", "")
    head = f"{group}={name}\n\n" + (summary(target) + "\n\n" if target else "")
    lines = [x for x in text.splitlines() if not x.startswith(("_partial_", "_target_", "# @package"))]
    prefix = f"Keys, set as {package_of(group, name)}.<key>=<value>:\n"
    chosen = [d for d in (yaml.safe_load(text) or {}).get("defaults", []) if isinstance(d, dict)]
    of_its_own = [(f"{group}/{part}", name) for default in chosen for part, name in default.items()]
    parts = [option(part, name) for part, name in of_its_own if part in groups()]
    own = head + (prefix if target else "") + "\n".join("  " + x for x in lines).strip("\n")
    return "\n\n".join([own, *parts])


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return 0
    names = groups()
    for argument in sys.argv[1:] or [""]:
        group, equals, name = argument.partition("=")
        if group == "config":
            print((CONF / "config.yaml").read_text().partition("\nhydra:")[0])
        elif group and group not in names:
            raise ConfigError(
                f"{group}: there is no such group.{did_you_mean(group, names)} Groups: {', '.join(names)}, config"
            )
        elif equals:
            print(option(group, name))
        else:
            for name in [group] if group else names:
                print(f"{name}: {', '.join(options(name))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
