"""What an installation consists of: interfaces, ament index, executables, and that the lists of dependencies agree."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory

ROOT = Path(__file__).parents[1]
INTERFACES = sorted(path.relative_to(ROOT / 'msg') for kind in ('msg', 'srv', 'action') for path in ROOT.glob(f'msg/{kind}/*'))
SCRIPTS = sorted(path.relative_to(ROOT / 'scripts') for path in ROOT.glob('scripts/*/*'))


def dependencies(manifest):
    """Names in all <..._depend> and <depend> elements of a package.xml."""
    return {element.text for element in ElementTree.parse(manifest).getroot() if element.tag.endswith('depend')}


@pytest.mark.parametrize('path', INTERFACES, ids=str)
def test_interface_is_installed_and_every_field_explained(path):
    kind = importlib.import_module(f'diffuser_msgs.{path.parts[0]}')
    getattr(kind, path.stem)
    assert (Path(get_package_share_directory('diffuser_msgs')) / path).is_file()
    for line in (ROOT / 'msg' / path).read_text().splitlines():
        if line and not line.startswith('#') and line != '---':
            assert re.fullmatch(r'\S+ \S+\s+# .+', line), f'{path}: field without a comment: {line}'


def test_every_interface_is_built():
    listed = re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', (ROOT / 'msg/CMakeLists.txt').read_text())
    assert sorted(listed) == [str(path) for path in INTERFACES]


@pytest.mark.parametrize('path', SCRIPTS, ids=str)
def test_executable_is_where_ros2_run_looks(path):
    package, name = path.parts
    installed = Path(get_package_prefix(package), 'lib', package, name)
    assert os.access(installed, os.X_OK)
    body = (ROOT / 'scripts' / path).read_text().partition('\n')[2]
    assert installed.read_text().endswith(body)
    module = re.search(r'^from (diffuser_\S+) import main$', body, re.MULTILINE)[1]
    assert callable(importlib.import_module(module).main)


def test_verb_runs_with_the_environments_python_and_ignores_ros_arguments(tmp_path):
    installed = Path(get_package_prefix('diffuser_core'), 'lib/diffuser_core/train')
    done = subprocess.run([installed, '--help', '--ros-args', '-r', '__node:=x'], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert 'train' in done.stdout


def test_launch_and_config_are_installed():
    share = Path(get_package_share_directory('diffuser_ros'))
    for path in [*ROOT.glob('launch/*.py'), *ROOT.glob('config/*.yaml')]:
        assert (share / path.relative_to(ROOT)).is_file(), f'{path} is not installed'


@pytest.mark.parametrize('given, expected', [(None, sys.prefix), ('/somewhere/else', '/somewhere/else')])
def test_environment_is_an_ament_prefix_unless_another_is_set(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != 'AMENT_PREFIX_PATH'}
    if given is not None:
        environment['AMENT_PREFIX_PATH'] = given
    done = subprocess.run([sys.executable, '-c', 'import os; print(os.environ["AMENT_PREFIX_PATH"])'], env=environment,
                          capture_output=True, text=True)
    assert done.stdout == f'{expected}\n', done.stderr


def test_the_two_manifests_and_the_python_package_agree():
    root, msg = ROOT / 'package.xml', ROOT / 'msg/package.xml'
    assert dependencies(msg) <= dependencies(root)
    versions = {ElementTree.parse(path).findtext('version') for path in (root, msg)}
    assert versions == set(re.findall(r'^version = "(.*)"$', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE))


def test_every_pin_is_exact():
    text = (ROOT / 'pyproject.toml').read_text()
    lists = re.findall(r'^(?:requires|dependencies|test) = \[\n(.*?)^\]', text, re.MULTILINE | re.DOTALL)
    pins = [line for block in lists for line in block.splitlines()]
    assert len(lists) == 3 and len(pins) > 30
    for line in pins:
        assert re.match(r'  "[\w-]+(\[\w+\])?==[\w.]+(; python_version [<>=]+ \'3\.11\')?",', line), line


def test_missing_system_packages_are_named_in_one_sentence(tmp_path):
    tools = tmp_path / 'bin'
    tools.mkdir()
    for name in ('sh', 'make', 'g++', 'find'):
        (tools / name).symlink_to(shutil.which(name))
    done = subprocess.run([tools / 'make', 'check'], cwd=ROOT, env={'PATH': str(tools)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        'diffuser_ros: packages are missing on this machine; install them with: '
        'apt-get install cmake python3 python3-venv python3-dev')
