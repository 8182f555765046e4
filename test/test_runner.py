"""The command diffuser-ros: what launch files mean, who gets signals, what is refused; small programs act as nodes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from diffuser_ros import launch_standin, runner

PATIENCE_S = 30.0

# diffuser-ros in a process of its own, standing in even where ROS 2's own commands are installed.
COMMAND = [sys.executable, '-c', 'import sys; from diffuser_ros import runner; '
                                 'runner._importable = lambda module: False; sys.exit(runner.main())']

# Writes what it was given, then does as its first argument says.
TOY = f'''#!{sys.executable} -S
import os, signal, sys, time
do, rest = sys.argv[1], sys.argv[2:]
print('ARGS', *rest, flush=True)
for i, word in enumerate(rest):
    if word == '--params-file':
        print('PARAMS', open(rest[i + 1]).read().replace('\\n', '|'), flush=True)
print('ENV', os.environ.get('TOY'), flush=True)
if do == 'wait':
    time.sleep(600)
elif do == 'stubborn':
    signal.signal(signal.SIGINT, lambda *_: print('GOT SIGINT', flush=True))
    signal.signal(signal.SIGTERM, lambda *_: print('GOT SIGTERM', flush=True))
    print('READY', flush=True)
    while True:
        time.sleep(0.1)
elif do == 'parent':
    pid = os.fork()
    if pid:
        print('CHILD', pid, flush=True)
    time.sleep(600)
elif do == 'orphan':
    pid = os.fork()
    if pid:
        print('CHILD', pid, flush=True)
    else:
        time.sleep(600)
else:
    sys.exit(int(do))
'''

HEAD = '''
from launch import LaunchDescription
from launch.actions import (DeclareLaunchArgument, EmitEvent, ExecuteProcess, GroupAction, IncludeLaunchDescription,
                            LogInfo, OpaqueFunction, RegisterEventHandler, SetEnvironmentVariable, Shutdown,
                            TimerAction)
from launch.conditions import IfCondition, UnlessCondition
from launch.event_handlers import OnProcessExit, OnProcessStart, OnShutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution, TextSubstitution
from launch_ros.actions import Node, PushRosNamespace, SetParameter
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
import launch.events


def toy(*arguments, **kwargs):
    return Node(package='toys', executable='toy', arguments=list(arguments), **kwargs)


def generate_launch_description():
    return LaunchDescription([
'''


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """An ament prefix with one package, toys, with one executable, toy; returns the prefix."""
    prefix = tmp_path / 'prefix'
    for folder in ('share/ament_index/resource_index/packages', 'share/toys/launch', 'lib/toys'):
        (prefix / folder).mkdir(parents=True)
    (prefix / 'share/ament_index/resource_index/packages/toys').touch()
    program = prefix / 'lib/toys/toy'
    program.write_text(TOY)
    program.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(prefix))
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    return prefix


class Run:
    """A launch running in a process of its own; its lines are collected as they come."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([*COMMAND, 'launch', *map(str, arguments)],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()

    def wait_for(self, pattern):
        """First match of a pattern in a line of the output."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match
            time.sleep(0.02)
        raise AssertionError(f'no {pattern!r} within {PATIENCE_S} s in:\n{self.text}')

    def end(self):
        """Exit code, once the launch has ended."""
        code = self.process.wait(PATIENCE_S)
        self.reader.join(PATIENCE_S)
        return code

    @property
    def text(self):
        return ''.join(self.lines)

    @property
    def pids(self):
        return [int(pid) for pid in re.findall(r'started with pid \[(\d+)\]|CHILD (\d+)', self.text)
                for pid in pid if pid]


@pytest.fixture
def launch(toys, tmp_path):
    """Starts a launch of the given entities (Python text) and arguments; afterwards no process of it may be left."""
    runs = []

    def start(entities, *arguments, name='test.launch.py'):
        path = tmp_path / name
        path.write_text(HEAD + entities + '])\n')
        runs.append(Run(path, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.end()
        assert not [pid for pid in run.pids if alive(pid)], run.text
    assert not list(tmp_path.glob('diffuser_ros_launch_*')), 'parameter files were left'


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_until_gone(pid):
    deadline = time.monotonic() + PATIENCE_S
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def parameters(run, process):
    """Parameters that a process was given by files, later ones over earlier ones."""
    found = {}
    for written in re.findall(rf'\[{process}\] PARAMS (.*)', run.text):
        found.update(yaml.safe_load(written.replace('|', '\n'))['/**']['ros__parameters'])
    return found


def test_first_line_says_what_it_is(launch):
    run = launch("toy('0')")
    assert run.end() == 0
    assert 'standing in for ROS 2' in run.lines[0]


def test_arguments_have_defaults_and_values(launch):
    declared = """
        DeclareLaunchArgument('one', default_value='default one'),
        DeclareLaunchArgument('two', default_value=['from ', LaunchConfiguration('one')], choices=None),
        LogInfo(msg=['one=', LaunchConfiguration('one'), ' two=', LaunchConfiguration('two')]),
    """
    run = launch(declared)
    assert run.end() == 0
    assert '[launch] one=default one two=from default one' in run.text
    run = launch(declared, 'one:=x:=y')
    assert run.end() == 0
    assert '[launch] one=x:=y two=from x:=y' in run.text


@pytest.mark.parametrize('arguments, code, message', [
    ([], 1, "launch argument 'must' must be given: must:=<value>"),
    (['must:=1', 'colour:=pink'], 1, "launch argument 'colour' must be one of red, blue, not 'pink'"),
    (['must:=1', 'color:=red'], 2, "launch argument 'color' is not known to test.launch.py; it has: must, colour"),
    (['must=1'], 2, "launch arguments are written name:=value, not 'must=1'"),
])
def test_wrong_arguments_give_one_sentence(launch, arguments, code, message):
    run = launch("""
        DeclareLaunchArgument('must'),
        DeclareLaunchArgument('colour', default_value='red', choices=['red', 'blue']),
        toy('0')
    """, *arguments)
    assert run.end() == code
    assert message in run.text
    assert 'Traceback' not in run.text and 'process started' not in run.text


def test_show_args_starts_nothing(launch):
    run = launch("""
        DeclareLaunchArgument('must', description='what it must be'),
        GroupAction([DeclareLaunchArgument('colour', default_value='red', choices=['red', 'blue'])]),
        toy('0')
    """, '--show-args')
    assert run.end() == 0
    assert 'must:=<required>\n    what it must be\ncolour:=red\n    one of: red, blue\n' in run.text
    assert 'process started' not in run.text


def test_conditions(launch):
    run = launch("""
        DeclareLaunchArgument('gui', default_value='false'),
        LogInfo(msg='with gui', condition=IfCondition(LaunchConfiguration('gui'))),
        LogInfo(msg='without gui', condition=UnlessCondition(LaunchConfiguration('gui'))),
    """, 'gui:=True')
    assert run.end() == 0
    assert 'with gui' in run.text and 'without gui' not in run.text
    run = launch("LogInfo(msg='x', condition=IfCondition('maybe'))")
    assert run.end() == 1
    assert "a condition must be true, false, 1 or 0, not 'maybe'" in run.text


def test_node_gets_parameters_remappings_name_and_arguments(launch, tmp_path):
    (tmp_path / 'file.yaml').write_text("/**: {ros__parameters: {from_file: 7, rate: 1.0}}")
    run = launch(f"""
        DeclareLaunchArgument('seed', default_value='3'),
        SetParameter('use_sim_time', True),
        toy('0', '--flag', LaunchConfiguration('seed'), name='me', namespace='arm',
            remappings=[('from', ['to_', LaunchConfiguration('seed')])], additional_env={{'TOY': 'toy env'}},
            parameters=[{str(tmp_path / 'file.yaml')!r}, {{
                'rate': 24.0, 'seed': LaunchConfiguration('seed'), 'word': 'true', 'empty': '',
                'as_text': ParameterValue(LaunchConfiguration('seed'), value_type=str),
                'as_float': ParameterValue(LaunchConfiguration('seed'), value_type=float),
                'joined': ['seed ', LaunchConfiguration('seed')], 'words': ['a', '1'], 'mixed': [1, 2.5],
                'nested': {{'gain': 0.5, 'on': False}}}}]),
    """)
    assert run.end() == 0
    arguments = re.search(r'ARGS (.*)', run.text)[1]
    assert arguments.startswith('--flag 3 --ros-args -r __node:=me -r __ns:=/arm --params-file ')
    assert arguments.endswith('-r from:=to_3')
    assert 'ENV toy env' in run.text
    assert parameters(run, 'toy-1') == {
        'use_sim_time': True, 'from_file': 7, 'rate': 24.0, 'seed': 3, 'word': 'true', 'empty': '', 'as_text': '3',
        'as_float': 3.0, 'joined': 'seed 3', 'words': ['a', '1'], 'mixed': [1.0, 2.5], 'nested.gain': 0.5,
        'nested.on': False}


@pytest.mark.parametrize('parameter, message', [
    ("ParameterValue('x', value_type=int)", "expected a parameter of type int, got 'x'"),
    ("TextSubstitution(text='{')", "parameter value '{' is not YAML"),
    ('None', 'a parameter cannot have the value None'),
])
def test_wrong_parameters_give_one_sentence(launch, parameter, message):
    run = launch(f"toy('0', parameters=[{{'a': {parameter}}}])")
    assert run.end() == 1
    assert message in run.text and 'Traceback' not in run.text


def test_missing_parameter_file_package_and_executable(launch):
    for node, message in [("toy('0', parameters=['/no/such.yaml'])", 'parameter file /no/such.yaml does not exist'),
                          ("Node(package='nothing', executable='toy')", "package 'nothing' is not installed"),
                          ("Node(package='toys', executable='nothing')", "package 'toys' has no executable 'nothing'")]:
        run = launch(node)
        assert run.end() == 1
        assert message in run.text and 'Traceback' not in run.text


def test_groups_scope_namespaces_configurations_and_environment(launch):
    run = launch("""
        SetEnvironmentVariable('TOY', 'outer'),
        GroupAction([
            PushRosNamespace('left'), SetEnvironmentVariable('TOY', 'inner'),
            DeclareLaunchArgument('inside', default_value='set'),
            GroupAction([PushRosNamespace('deep'), toy('0', exec_name='deep')]),
            GroupAction([PushRosNamespace('/top'), toy('0', namespace='own', exec_name='top')]),
        ]),
        toy('0', exec_name='outer'),
        LogInfo(msg=['inside ', LaunchConfiguration('inside', default='forgotten')]),
        LogInfo(msg=['toy ', EnvironmentVariable('TOY')]),
        LogInfo(msg=EnvironmentVariable('NO_SUCH', default_value='no such')),
    """)
    assert run.end() == 0
    assert re.search(r'\[deep-1\] ARGS .*__ns:=/left/deep', run.text)
    assert re.search(r'\[top-2\] ARGS .*__ns:=/top/own', run.text)
    assert '[outer-3] ARGS --ros-args\n' in run.text
    assert '[deep-1] ENV inner' in run.text and '[outer-3] ENV outer' in run.text
    assert '[launch] inside forgotten' in run.text
    assert '[launch] toy outer' in run.text and '[launch] no such' in run.text


def test_included_file_gets_arguments(launch, toys):
    included = toys / 'share/toys/launch/part.launch.py'
    included.write_text(HEAD + "DeclareLaunchArgument('part', default_value='none'), "
                               "LogInfo(msg=['part is ', LaunchConfiguration('part')])])\n")
    including = """
        DeclareLaunchArgument('mine', default_value='{mine}'),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(PathJoinSubstitution([FindPackageShare('toys'), 'launch', 'part.launch.py'])),
            launch_arguments={arguments}.items()),
    """
    run = launch(including.format(mine='given', arguments="{'part': LaunchConfiguration('mine')}"))
    assert run.end() == 0
    assert 'part is given' in run.text
    run = launch(including.format(mine='', arguments='{}'), 'part:=from outside')
    assert run.end() == 0
    assert 'part is from outside' in run.text


def test_launch_file_is_found_by_name(launch, toys):
    (toys / 'share/toys/launch/named.launch.py').write_text(HEAD + "LogInfo(msg='found')])\n")
    run = Run('named.launch.py')
    assert run.end() == 0
    assert '[launch] found' in run.text
    run = Run('unnamed.launch.py')
    assert run.end() == 2
    assert 'there is no launch file unnamed.launch.py' in run.text


def test_opaque_function_sees_the_context_and_adds_entities(launch, tmp_path):
    run = launch("""
        DeclareLaunchArgument('word', default_value='hello'),
        OpaqueFunction(function=lambda context, *args, **kwargs: [LogInfo(msg=[
            LaunchConfiguration('word').perform(context), ' ', context.launch_configurations['word'], *args,
            kwargs['mark']])], args=[' you'], kwargs={'mark': '!'}),
        OpaqueFunction(function=lambda context: None),
    """)
    assert run.end() == 0
    assert '[launch] hello hello you!' in run.text


def test_timers_start_actions_later(launch):
    run = launch("""
        TimerAction(period=0.3, actions=[LogInfo(msg='second')]),
        TimerAction(period='0.1', actions=[LogInfo(msg='first')]),
        LogInfo(msg='at once'),
    """)
    assert run.end() == 0
    order = [run.text.index(word) for word in ('at once', 'first', 'second')]
    assert order == sorted(order)


def test_event_handlers(launch):
    run = launch("""
        *(lambda a, b: [
            RegisterEventHandler(OnProcessStart(target_action=a, on_start=[LogInfo(msg='a runs')])),
            a,
            RegisterEventHandler(OnProcessStart(target_action=a, on_start=LogInfo(msg='a runs, told late'))),
            RegisterEventHandler(OnProcessExit(target_action=a, on_exit=lambda event, context: [
                LogInfo(msg=f'{event.process_name} ended with {event.returncode}'), b])),
            RegisterEventHandler(OnProcessExit(on_exit=LogInfo(msg='one ended'))),
            RegisterEventHandler(OnShutdown(on_shutdown=[LogInfo(msg='the end')])),
        ])(toy('0'), toy('0')),
    """)
    assert run.end() == 0
    assert '[launch] a runs\n' in run.text and '[launch] a runs, told late\n' in run.text
    assert '[launch] toy-1 ended with 0\n' in run.text
    assert '[toy-2] process has finished cleanly' in run.text
    assert run.text.count('[launch] one ended\n') == 2
    assert run.text.count('[launch] the end\n') == 1


@pytest.mark.parametrize('order', [
    'on_exit=Shutdown()', "on_exit=EmitEvent(event=launch.events.Shutdown(reason='enough'))"])
def test_ordered_shutdown_ends_the_others_and_is_no_failure(launch, order):
    run = launch(f"toy('wait'), toy('0', {order}), TimerAction(period=300.0, actions=[toy('0')])")
    assert run.end() == 0
    assert 'shutting down' in run.text
    assert len(run.pids) == 2


def test_failed_process_makes_the_exit_code(launch):
    run = launch("toy('3', on_exit=Shutdown()), toy('wait')")
    assert run.end() == 1
    assert 'exit code 3' in run.text
    run = launch("toy('3'), toy('0')")
    assert run.end() == 1
    run = launch("ExecuteProcess(cmd=['/no/such/program'], output='screen'), toy('wait')")
    assert run.end() == 1
    assert '/no/such/program cannot be started: No such file or directory' in run.text


def test_respawn(launch):
    run = launch("toy('wait', respawn=True, respawn_delay=0.1)")
    first = int(run.wait_for(r'\[toy-1\] process started with pid \[(\d+)\]')[1])
    run.wait_for(r'\[toy-1\] ENV')
    os.kill(first, signal.SIGKILL)
    run.wait_for(r'\[toy-1\] process has died .*SIGKILL')
    run.wait_for(r'\[toy-2\] ENV')
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_every_process(launch, number):
    run = launch("toy('wait'), toy('parent')")
    child = int(run.wait_for(r'CHILD (\d+)')[1])
    run.wait_for(r'\[toy-1\] ENV')
    run.process.send_signal(number)
    assert run.end() == 0
    assert number.name in run.text
    wait_until_gone(child)


def test_stubborn_process_is_killed(launch):
    run = launch("toy('stubborn', sigterm_timeout='0.2', sigkill_timeout='0.2')")
    run.wait_for('READY')
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 0
    assert run.text.index('GOT SIGINT') < run.text.index('GOT SIGTERM') < run.text.index('sending SIGKILL')


def test_what_a_process_leaves_running_is_ended(launch):
    run = launch("toy('orphan')")
    child = int(run.wait_for(r'CHILD (\d+)')[1])
    assert run.end() == 0
    wait_until_gone(child)


def test_no_process_survives_an_error_in_the_launcher(toys, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'test.launch.py'
    path.write_text(HEAD + "toy('wait')])\n")
    pids = []

    def broken_log(self, source, message):
        pids.extend(int(pid) for pid in re.findall(r'pid \[(\d+)\]', message))
        if 'ENV' in message:
            raise BrokenPipeError('nobody reads')

    monkeypatch.setattr(launch_standin.launcher.Launcher, 'log', broken_log)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(BrokenPipeError), launch_standin.stand_in_modules():
        launch_standin.launch(path, {})
    assert len(pids) == 1
    assert not alive(pids[0])
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.skipif(sys.platform != 'linux', reason='uses a signal that only Linux has')
def test_no_process_survives_the_launcher_being_killed(launch, tmp_path):
    run = launch("toy('wait'), toy('wait')")
    run.wait_for(r'\[toy-1\] ENV')
    run.wait_for(r'\[toy-2\] ENV')
    run.process.kill()
    run.end()
    for pid in run.pids:
        wait_until_gone(pid)


def test_output_that_the_terminal_cannot_show_is_replaced(launch, monkeypatch):
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    run = launch("ExecuteProcess(cmd=['printf', 'mètre'])")
    assert run.end() == 0
    assert '[printf-1] m?tre\n' in run.text


def test_last_line_without_an_end_is_shown(launch):
    run = launch("ExecuteProcess(cmd=['printf', 'one\\\\ntwo'])")
    assert run.end() == 0
    assert '[printf-1] one\n' in run.text and '[printf-1] two\n' in run.text


@pytest.mark.parametrize('code, name', [
    ('from launch.actions import AppendEnvironmentVariable', 'launch.actions.AppendEnvironmentVariable'),
    ('from launch.substitutions import PythonExpression', 'launch.substitutions.PythonExpression'),
    ('import launch.frontend', 'launch.frontend'),
    ('from launch_ros.actions import ComposableNodeContainer', 'launch_ros.actions.ComposableNodeContainer'),
    ('import launch_ros; launch_ros.descriptions', 'launch_ros.descriptions'),
    ("from launch_ros.actions import Node; Node(executable='x', emulate_tty=True)", "argument 'emulate_tty' of Node()"),
    ("from launch_ros.actions import Node; Node(executable='x').is_node_name_fully_specified()",
     "attribute 'is_node_name_fully_specified' of Node"),
    ("from launch_ros.actions import Node; Node(executable='x', output='own_log')", "output='own_log' of Node()"),
])
def test_what_is_not_covered_is_refused_by_name(toys, tmp_path, code, name):
    path = tmp_path / 'test.launch.py'
    path.write_text(f'def generate_launch_description():\n    {code}\n')
    run = Run(path)
    assert run.end() == 2
    assert f"{name} is not covered by diffuser-ros's stand-in for launch: ROS 2's own launch is needed" in run.text
    assert 'Traceback' not in run.text


@pytest.mark.parametrize('name, content, message', [
    ('a.launch.py', 'def f(:', r'a.launch.py: SyntaxError: '),
    ('a.launch.py', '\n1 / 0', r'a.launch.py, line 2: ZeroDivisionError: division by zero'),
    ('a.launch.py', '', r'a.launch.py has no function generate_launch_description\(\)'),
    ('a.launch.py', 'def generate_launch_description(): pass', r'returned no LaunchDescription'),
    ('a.launch.xml', '<launch/>', r'a.launch.xml \(not Python\) is not covered'),
])
def test_broken_launch_files_give_one_sentence(toys, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    run = Run(path)
    assert run.end() == 2
    assert re.search(message, run.text)
    assert 'Traceback' not in run.text


def test_error_in_an_entity_shuts_down_with_its_message(launch):
    run = launch("""
        toy('wait'),
        OpaqueFunction(function=lambda context: 1 / 0),
    """)
    assert run.end() == 1
    assert 'ERROR: ZeroDivisionError: division by zero' in run.text


def test_stand_in_modules_are_taken_away_again():
    before = {name for name in sys.modules if name.split('.')[0] in ('launch', 'launch_ros')}
    with launch_standin.stand_in_modules():
        assert 'launch_ros.actions' in sys.modules
    assert {name for name in sys.modules if name.split('.')[0] in ('launch', 'launch_ros')} == before


@pytest.mark.parametrize('command, handed_over', [
    (['launch', '{file}', 'gui:=true'], ['launch', '{file}', 'gui:=true']),
    (['launch', '--show-args', '{file}'], ['launch', '{file}', '--show-args']),
    (['run', 'planner_node', '--ros-args', '-r', 'a:=b'],
     ['run', 'diffuser_ros', 'planner_node', '--ros-args', '-r', 'a:=b']),
    (['call', '/a', 'std_srvs/srv/Trigger', '{{}}'], ['service', 'call', '/a', 'std_srvs/srv/Trigger', '{{}}']),
    (['topics'], ['topic', 'list', '-t']),
])
def test_real_ros2_takes_over_where_it_is_importable(tmp_path, command, handed_over):
    modules = tmp_path / 'modules'
    for name in ('launch', 'ros2launch', 'ros2run', 'ros2service', 'ros2topic', 'ros2cli'):
        (modules / name).mkdir(parents=True)
        (modules / name / '__init__.py').touch()
    (modules / 'ros2cli' / 'cli.py').write_text('import sys\ndef main(): print(sys.argv); return 7\n')
    file = tmp_path / 'a.launch.py'
    file.touch()
    done = subprocess.run([sys.executable, '-m', 'diffuser_ros.runner', *(w.format(file=file) for w in command)],
                          env={**os.environ, 'PYTHONPATH': str(modules)}, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f'{["ros2", *(word.format(file=file) for word in handed_over)]}\n'


def test_run_replaces_itself_with_the_executable(toys):
    (toys / 'share/ament_index/resource_index/packages/diffuser_core').touch()
    (toys / 'lib/toys').rename(toys / 'lib/diffuser_core')
    done = subprocess.run([*COMMAND, 'run', 'toy', '4', '--ros-args', 'x'], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[0]) == (4, 'ARGS --ros-args x')
    done = subprocess.run([*COMMAND, 'run', 'missing'], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == 'diffuser-ros: there is no executable missing; there are: toy\n'


@pytest.fixture(scope='module')
def server():
    """A node with a service and a topic, in a thread of this process."""
    import rclpy
    from diffuser_msgs.srv import SetGoal
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    def set_goal(request, response):
        response.success = request.task == 'stack'
        response.message = f'{request.task} {list(request.relations)} {list(request.values)}'
        return response

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('server', context=context)
    node.create_service(SetGoal, 'set_goal', set_goal)
    node.create_publisher(String, 'chatter', 1)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield
    executor.shutdown()
    thread.join(PATIENCE_S)
    node.destroy_node()
    rclpy.shutdown(context=context)


class TestQueries:
    """call and topics, answered by the stand-in."""

    @pytest.fixture(autouse=True)
    def no_ros2(self, monkeypatch):
        monkeypatch.setattr(runner, '_importable', lambda module: False)

    def test_call_prints_the_answer(self, server, capsys):
        assert runner.main(['call', '/set_goal', 'diffuser_msgs/srv/SetGoal',
                            '{task: stack, relations: [red on green], values: [1, 2.5]}']) == 0
        assert yaml.safe_load(capsys.readouterr().out) == {
            'success': True, 'message': "stack ['red on green'] [1.0, 2.5]", 'goal_id': ''}

    def test_call_answered_with_failure_ends_with_1(self, server, capsys):
        assert runner.main(['call', '/set_goal', 'diffuser_msgs/srv/SetGoal']) == 1
        assert yaml.safe_load(capsys.readouterr().out)['success'] is False

    @pytest.mark.parametrize('type_name, request_text, message', [
        ('diffuser_msgs/srv/SetGoal', '{tsk: stack}',
         "request has no field 'tsk'; it has: task, relations, channels, values"),
        ('diffuser_msgs/srv/SetGoal', '{task: 3}', 'request.task must be of type string, not 3'),
        ('diffuser_msgs/srv/SetGoal', '{relations: x}', "request.relations must be of type sequence<string>, not 'x'"),
        ('diffuser_msgs/srv/SetGoal', '{values: [a]}', "request.values must be of type sequence<double>, not ['a']"),
        ('diffuser_msgs/srv/SetGoal', 'stack', "request must be given as field: value pairs, not 'stack'"),
        ('diffuser_msgs/srv/SetGoal', '{a: [}', 'the request is not YAML: '),
        ('diffuser_msgs/srv/SetGoal', '{values: [2001-13-45]}', 'the request is not YAML: month must be in 1..12'),
        ('diffuser_msgs/SetGoal', '{}', "a service type is written package/srv/Name, not 'diffuser_msgs/SetGoal'"),
        ('diffuser_msgs/srv/Nothing', '{}', "package 'diffuser_msgs' has no service 'Nothing'"),
        ('nothing_msgs/srv/SetGoal', '{}', "package 'nothing_msgs' has no services, or is not installed"),
    ])
    def test_wrong_calls_give_one_sentence(self, capsys, type_name, request_text, message):
        assert runner.main(['call', '/set_goal', type_name, request_text]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f'diffuser-ros: {message}') and error.count('\n') == 1

    def test_missing_service_is_said(self, capsys, monkeypatch):
        monkeypatch.setattr('diffuser_ros.ros_queries.SERVICE_WAIT_S', 0.2)
        assert runner.main(['call', '/nobody', 'std_srvs/srv/Trigger']) == 2
        assert 'no service /nobody was found within 0.2 s' in capsys.readouterr().err

    def test_nested_messages_are_filled(self):
        from diffuser_msgs.msg import ObjectStates

        from diffuser_ros.ros_queries import QueryError, fill, plain

        values = {'header': {'frame_id': 'world'}, 'names': ['red'], 'attached': [True],
                  'poses': [{'position': {'x': 1, 'y': 2.0, 'z': 0.5}}]}
        written = plain(fill(ObjectStates, values, 'message'))
        assert written['header'] == {'stamp': {'sec': 0, 'nanosec': 0}, 'frame_id': 'world'}
        assert written['poses'] == [{'position': {'x': 1.0, 'y': 2.0, 'z': 0.5},
                                     'orientation': {'x': 0.0, 'y': 0.0, 'z': 0.0, 'w': 1.0}}]
        with pytest.raises(QueryError, match=r"message.poses\[0\].position has no field 'q'"):
            fill(ObjectStates, {'poses': [{'position': {'q': 1}}]}, 'message')

    def test_topics_lists_names_and_types(self, server, capsys):
        assert runner.main(['topics']) == 0
        assert '/chatter [std_msgs/msg/String]\n' in capsys.readouterr().out
