"""What pip does beyond pyproject.toml; `colcon build` does not use this file.

CMake builds and installs the whole ROS package into a staging folder. All of it but our own Python packages (that is,
the interfaces, share/ and the scripts in lib/<package>/) becomes data of the wheel, so that the environment's prefix is
an ament prefix, where `ros2 launch`, `ros2 run` and ament_index find everything.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TREE = ROOT / 'build' / 'pip-cmake'
STAGE = ROOT / 'build' / 'pip-stage'
PACKAGES = find_packages(include=['diffuser_core*', 'diffuser_ros*'])

# Runs when Python starts: rclpy needs no variable, but ament_index wants to know the prefix. One that is set is kept.
PREFIX_PTH = "import os, sys; os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)\n"

# Started as a shell script, a script runs itself with the Python of the prefix that it lies in (lib/<package>/../..).
RELATIVE_SHEBANG = '#!/bin/sh\n\'\'\'exec\' "$(dirname "$0")/../../bin/python3" "$0" "$@"\n\' \'\'\'\n'


def python_folders() -> list[str]:
    """Folders of installed Python packages, without those of pip's build isolation that carry a sitecustomize."""
    return [p for p in sys.path if p.endswith('-packages') and not (Path(p) / 'sitecustomize.py').exists()]


def ament_prefixes() -> list[str]:
    """Prefixes where CMake finds ROS packages: those of the environment, then those of ROS wheels on sys.path."""
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    prefixes += [str(Path(p).parents[2]) for p in python_folders() if (Path(p) / 'ament_package').is_dir()]
    return list(dict.fromkeys(prefixes))


def build_stage() -> None:
    """Build and install the ROS package into STAGE; a second build with the same tools does only what changed."""
    cmake = shutil.which('cmake')
    if cmake is None or shutil.which('c++') is None:
        raise SystemExit('diffuser_ros: cmake and a C++ compiler are needed to build the ROS interfaces; '
                         'on Debian or Ubuntu: apt-get install cmake g++ make python3-dev')
    prefixes, folders = ament_prefixes(), python_folders()
    made_with = TREE / 'made-with.txt'
    tools = '\n'.join([sys.executable, cmake, *prefixes, *folders])
    if not made_with.exists() or made_with.read_text() != tools:
        shutil.rmtree(TREE, ignore_errors=True)
    shutil.rmtree(STAGE, ignore_errors=True)
    env = {**os.environ, 'AMENT_PREFIX_PATH': os.pathsep.join(prefixes), 'PYTHONPATH': os.pathsep.join(folders)}

    def run(*arguments: str) -> None:
        # An exit, since setuptools' editable build only warns of other errors and would install half of it.
        done = subprocess.run([cmake, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise SystemExit(f'{done.stdout}\ndiffuser_ros: building the ROS interfaces failed, see above')

    run('-S', str(ROOT), '-B', str(TREE), f'-DCMAKE_INSTALL_PREFIX={STAGE}', '-DBUILD_TESTING=OFF',
        f'-DCMAKE_PREFIX_PATH={";".join(prefixes)}', f'-DPython3_EXECUTABLE={sys.executable}')
    run('--build', str(TREE), '--parallel', str(os.cpu_count() or 1))
    run('--install', str(TREE))
    made_with.write_text(tools)
    for script in (p for package in ('diffuser_core', 'diffuser_ros') for p in (STAGE / 'lib' / package).glob('*')):
        script.write_text(RELATIVE_SHEBANG + script.read_text().partition('\n')[2])


def staged_data(site: Path) -> dict[str, list[str]]:
    """Files of STAGE by the folder of the prefix that they go to, without our own Python packages.

    Args:
        site: the folder of Python packages, relative to the prefix.
    """
    data: dict[str, list[str]] = {}
    for path in sorted(p for p in STAGE.rglob('*') if p.is_file() and '__pycache__' not in p.parts):
        parts = path.relative_to(STAGE).parts
        target = Path(*parts)
        packages = next((i for i, part in enumerate(parts) if part.endswith('-packages')), None)
        if packages is not None:
            tail = parts[packages + 1:]
            if tail[0] in PACKAGES or tail[0].endswith('.egg-info'):
                continue
            target = Path(site, *tail)
        data.setdefault(str(target.parent), []).append(os.path.relpath(path, ROOT))
    return data


class CMakeBuild(build_py):
    """Builds the ROS package before pip collects the Python packages."""

    def run(self) -> None:
        """Fill STAGE and list its files as data."""
        build_stage()
        site = Path(os.path.relpath(sysconfig.get_path('purelib'), sys.prefix))
        pth = STAGE / 'diffuser_ros_prefix.pth'
        pth.write_text(PREFIX_PTH)
        data = staged_data(site)
        data.pop('.', None)
        data.setdefault(str(site), []).append(os.path.relpath(pth, ROOT))
        self.distribution.data_files = sorted(data.items())
        self.distribution.get_command_obj('install_data').data_files = self.distribution.data_files
        super().run()


class BinaryDistribution(Distribution):
    """Marks the wheel as built for this Python and platform, with data."""

    def has_ext_modules(self) -> bool:
        return True

    def has_data(self) -> bool:
        """Asked by setuptools' editable build, which would leave the data out otherwise."""
        return bool(self.data_files)


setup(packages=PACKAGES, cmdclass={'build_py': CMakeBuild}, distclass=BinaryDistribution)
