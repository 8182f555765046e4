"""Files from elsewhere, built to do harm: each is refused in one readable line that names the file, before it costs memory."""

import hashlib
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml
from checkpoints import untrained
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffuser_core.checkpoint import Checkpoint, CheckpointError
from diffuser_core.config import ConfigError, load_config, parse_yaml
from diffuser_core.data.demonstrations import load_segments
from diffuser_core.data.episodes import load_episodes
from diffuser_core.envs.stacking import CHANNELS as STACKING
from diffuser_core.experts.collect_mazes import collect_maze
from diffuser_core.messages import LONGEST, one_line, shown
from diffuser_core.shipped import config_folder
from diffuser_core.train.config import TrainConfig
from diffuser_core.trajectory import Channels

CHANNELS = Channels(('push', 'x'), ('N', 'm'), actions=1)
BOMB = 'a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n' + ''.join(
    f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]\n' for n in range(1, 7))
"""Half a million words in seven lines; a30 would be more than fits into any memory."""


def refused(kind, call):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message and '\n' not in message and len(message) <= 1000
    return message


# ---- Messages --------------------------------------------------------------------------------------------------------


@given(st.text())
def test_a_message_is_one_line_of_bounded_length_and_short_ones_are_kept(text):
    line = one_line(text)
    assert len(line) <= LONGEST and len(line.splitlines()) <= 1
    assert line == ' '.join(text.split()) or len(text) > LONGEST


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.text(), inner)))
def test_any_value_is_shown_on_a_line(value):
    assert 0 < len(shown(value)) <= LONGEST and len(shown(value).splitlines()) == 1


def test_values_are_shown_as_python_writes_them_and_large_ones_cut_short():
    assert shown([1, 'a', {'b': 0.5}]) == "[1, 'a', {'b': 0.5}]"
    assert shown(16 ** 5000) == 'a whole number of 20001 bits'
    assert len(shown(parse_yaml(BOMB))) <= LONGEST


# ---- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('text', 'message'), [
    ('[' * 3000 + ']' * 3000, 'nested too deeply'),
    ('2001-13-45', 'month must be in 1..12'),
    ('!!int x', 'invalid literal'),
    ('!!float ""', ''),
    ('!!bool x', 'x'),
    ('!!timestamp x', ''),
    ('0x' + 'f' * 5000, 'more than 128 bits'),
    ('!!python/object/apply:os.getcwd []', 'could not determine a constructor'),
    ('{[a]: b}', 'unhashable key'),
    ('\x00', 'special characters are not allowed'),
], ids=lambda value: value[:20])
def test_text_that_is_no_yaml_is_refused(tmp_path, text, message):
    assert message in refused(ConfigError, lambda: parse_yaml(text))
    path = tmp_path / 'train.yaml'
    path.write_text(f'name: {text}')
    assert str(path) in refused(ConfigError, lambda: load_config(TrainConfig, path))
    assert 'the override' in refused(ConfigError, lambda: load_config(
        TrainConfig, config_folder() / 'maze2d_umaze.yaml', [f'name={text}']))


@pytest.mark.parametrize(('override', 'message'), [
    (f'optimizer.learning_rate={10 ** 38}', None),
    ('model.multipliers=[' + ', '.join(['1'] * 17) + ']', 'model.multipliers must be 1 to 16 positive whole numbers'),
    ('model.multipliers=[' + ', '.join(['0'] * 5000) + ']', 'model.multipliers must be'),
    ('model.multipliers=' + '[' * 100 + ']' * 100, 'must be of type int, got [[[[...]]]]'),
    ('data.jitter={' + 'x' * 900 + ': a}', 'must be of type float'),
    ('x' * 5000 + '=1', 'unknown key'),
    ('name.' + 'x' * 5000 + '=1', 'goes below'),
    ('x' * 5000, 'written key=value'),
    ('optimizer.warmup=1e400', 'must be of type int'),
], ids=lambda value: str(value)[:30])
def test_large_and_strange_values_are_refused(override, message):
    def load():
        return load_config(TrainConfig, config_folder() / 'maze2d_umaze.yaml', [override])
    if message is None:
        assert load().optimizer.learning_rate == 1e38
    else:
        assert message in refused(ConfigError, load)


def test_a_bomb_of_aliases_is_refused_without_being_written_out(tmp_path):
    path = tmp_path / 'train.yaml'
    path.write_text(BOMB + 'name: *a6\n')
    refused(ConfigError, lambda: load_config(TrainConfig, path))
    path.write_text('x: &x\n' + ''.join(f'  {line}\n' for line in BOMB.splitlines()) + 'name: *x\n')
    refused(ConfigError, lambda: load_config(TrainConfig, path))


# ---- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    untrained(CHANNELS, goal=('x',)).save(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint'


@pytest.mark.parametrize(('change', 'message'), [
    (lambda d: d['channels'][0].update(name=7), 'names of channels and units are words, got 7'),
    (lambda d: d['channels'][0].update(unit=[['N']]), "words, got [['N']]"),
    (lambda d: d.update(goal=[None]), 'words, got None'),
    (lambda d: d.update(step_dt=float('inf')), 'step_dt positive, got 16 and inf'),
    (lambda d: d.update(horizon=10 ** 12), 'horizon must be 2 to 100000'),
    (lambda d: d.update(horizon=float('inf')), 'infinity'),
    (lambda d: d['diffusion'].update(levels=10 ** 12), 'diffusion.levels must be at least 1 and at most 100000'),
    (lambda d: d['normalizer'].update(scale=[[1.0], [1.0]]), 'normalizer.scale must be 2 numbers'),
    (lambda d: d['normalizer'].update(offset=[0.0, '0']), 'normalizer.offset must be 2 numbers'),
    (lambda d: d['normalizer'].update(offset=[0.0, 10 ** 38 * 10]), 'config.yaml'),
    (lambda d: d['model'].update(width=2 ** 30), 'does not fit the network'),
    (lambda d: d['model'].update(width=2 ** 62), 'does not fit the network'),
    (lambda d: d['model'].update(width=8 * 10 ** 30), 'does not fit the network'),
    (lambda d: d['model'].update(context=2 ** 40), 'does not fit the network'),
    (lambda d: d['model'].update(context=8, pointers=['z']), 'does not fit the network'),
    (lambda d: d['model'].update(multipliers=[1] * 5000), 'model.multipliers must be 1 to 16'),
    (lambda d: d.update(format='x' * 5000), 'format must be 2'),
    (lambda d: d.update(model=['x' * 5000]), 'model must be a dict'),
])
def test_a_description_cannot_ask_for_too_much(folder, change, message):
    described = yaml.safe_load((folder / 'config.yaml').read_text())
    change(described)
    (folder / 'config.yaml').write_text(yaml.safe_dump(described))
    assert message in refused(CheckpointError, lambda: Checkpoint.load(folder).network())


@pytest.mark.parametrize('path', [
    ('format',), ('weights_sha256',), ('channels',), ('channels', 0, 'name'), ('channels', 0, 'unit'), ('actions',), ('goal',),
    ('goal', 0), ('horizon',), ('step_dt',), ('model',), ('model', 'width'), ('model', 'multipliers'),
    ('model', 'multipliers', 0), ('model', 'pointers'), ('model', 'norm'), ('diffusion', 'levels'),
    ('diffusion', 'prediction'), ('normalizer',),
    ('normalizer', 'kind'), ('normalizer', 'scale'), ('normalizer', 'scale', 0), ('provenance',)], ids=str)
def test_no_part_of_a_description_can_be_a_bomb(folder, path):
    described = yaml.safe_load((folder / 'config.yaml').read_text())
    *above, last = path
    part = described
    for key in above:
        part = part[key]
    part[last] = 'BOMB'
    (folder / 'config.yaml').write_text(BOMB + yaml.safe_dump(described).replace('BOMB', '*a6'))
    refused(CheckpointError, lambda: Checkpoint.load(folder))


def test_what_people_are_told_of_a_checkpoint_may_hold_a_bomb(folder):
    """Where a checkpoint comes from is free-form: it is written out with its aliases."""
    text = (folder / 'config.yaml').read_text()
    bomb = ''.join(f'  {line}\n' for line in BOMB.splitlines())
    (folder / 'config.yaml').write_text(text.replace('provenance:\n', f'provenance:\n{bomb}'))
    assert len(Checkpoint.load(folder).describe()) < 5000


@pytest.mark.parametrize('spoil', [lambda x: x.fill_(float('nan')), lambda x: x.fill_(float('inf')), lambda x: x.to(torch.int64),
                                   lambda x: x.to(torch.complex64)])
def test_weights_must_be_finite_numbers(folder, spoil):
    weights = load_file(folder / 'model.safetensors')
    name = sorted(weights)[0]
    weights[name] = spoil(weights[name])
    save_file(weights, folder / 'model.safetensors')
    described = yaml.safe_load((folder / 'config.yaml').read_text())
    described['weights_sha256'] = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    (folder / 'config.yaml').write_text(yaml.safe_dump(described))
    message = refused(CheckpointError, lambda: Checkpoint.load(folder))
    assert message == f'{folder}/model.safetensors is damaged: {name!r} holds something else than finite numbers'


# ---- Data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def demonstrations(tmp_path):
    """One demonstration of one segment, which can be loaded."""
    path = tmp_path / 'main_data.hdf5'
    with h5py.File(path, 'w') as file:
        file['episode_0/observations'] = np.zeros((4, len(STACKING)))
        file['episode_0/truncations'] = np.arange(3) == 2
        for name in ('demonstration', 'segment', 'upper', 'lower'):
            file[f'episode_0/infos/{name}'] = np.zeros(4, dtype=np.int64)
    assert load_segments(path).bounds.tolist() == [[0, 3]]
    return path


def replaced(file, name, value=None, **options):
    del file[name]
    if value is None:
        file.create_dataset(name, **options)
    else:
        file[name] = value


DAMAGES = [
    (lambda f, at: replaced(f, at, shape=(1 << 34, 39), dtype='f4', chunks=(1024, 39)), 'more than the file can hold'),
    (lambda f, at: replaced(f, at, h5py.SoftLink('/nowhere')), 'is a link to elsewhere'),
    (lambda f, at: replaced(f, at, h5py.ExternalLink('/etc/hostname', '/')), 'is a link to elsewhere'),
]


@pytest.mark.parametrize(('damage', 'message'), [
    *((lambda f, damage=damage: damage(f, 'episode_0/observations'), message) for damage, message in DAMAGES),
    (lambda f: replaced(f, 'episode_0/observations', b'text'), 'observations is not an array of numbers'),
    (lambda f: replaced(f, 'episode_0/truncations', f['episode_0/infos']), 'truncations is not an array of numbers'),
    (lambda f: replaced(f, 'episode_0/observations', np.full((4, len(STACKING)), 1e300)), 'not finite'),
    (lambda f: replaced(f, 'episode_0/infos/upper', np.full(4, 9)), 'a block that there is not'),
    (lambda f: replaced(f, 'episode_0/infos/lower', np.full(4, -2)), 'a block that there is not'),
    (lambda f: replaced(f, 'episode_0/infos/segment', np.zeros((4, 2), dtype=int)), 'segment must be one whole number a row'),
    (lambda f: replaced(f, 'episode_0/infos/segment', np.zeros(4)), 'segment must be one whole number a row'),
    (lambda f: f.__setitem__('episodes', f['/']), 'episode_1'),
])
def test_demonstrations_that_cannot_be(demonstrations, damage, message):
    with h5py.File(demonstrations, 'r+') as file:
        damage(file)
    told = refused(ValueError, lambda: load_segments(demonstrations))
    assert message in told and str(demonstrations) in told


@pytest.fixture(scope='module')
def mazes(tmp_path_factory):
    out = tmp_path_factory.mktemp('mazes')
    collect_maze(out, 'umaze', 70_000, 1, steps=400, drive_ticks=200, progress=False)
    return out


@pytest.mark.parametrize(('damage', 'message'), [
    *((lambda f, damage=damage: damage(f, 'episode_0/observations'), message) for damage, message in DAMAGES),
    (lambda f: replaced(f, 'episode_0/observations', 1.0), 'not arrays of numbers'),
    (lambda f: replaced(f, 'episode_0/actions', f['episode_0/actions'][()].astype('S4')), 'actions are not numbers'),
    (lambda f: replaced(f, 'episode_0/actions', f['episode_0/actions'][:0]), 'do not go together'),
    (lambda f: replaced(f, 'episode_1/observations', f['episode_1/observations'][:, :3]), 'episode 1 has 5 columns, others'),
    (lambda f: replaced(f, 'episode_0/infos/journey', 3), 'journeys are not a whole number a step'),
    (lambda f: replaced(f, 'episode_0/infos/journey', f['episode_0/infos/journey'][:5]), 'journeys are not'),
    (lambda f: replaced(f, 'episode_0/infos/journey', f['episode_0/infos/journey'][()].astype('S4')), 'journeys are not'),
    (lambda f: f.pop('episode_0'), 'is damaged'),
])
def test_episodes_that_cannot_be(mazes, tmp_path, damage, message):
    folder = tmp_path / 'copy'
    shutil.copytree(mazes, folder)
    with h5py.File(next(folder.glob('**/main_data.hdf5')), 'r+') as file:
        damage(file)
    told = refused(ValueError, lambda: load_episodes(folder))
    assert message in told and str(folder) in told


@pytest.mark.parametrize('change', [
    lambda spec, made: spec.update(entry_point='os:mkdir', kwargs={'path': str(made)}),
    lambda spec, made: spec.update(id='made/up-v0', entry_point='os:mkdir', kwargs={'path': str(made)}),
    lambda spec, made: spec.update(additional_wrappers=[
        {'name': 'x', 'entry_point': 'shutil:rmtree', 'kwargs': {'ignore_errors': True}}]),
    lambda spec, made: spec.update(entry_point=['os:mkdir']),
])
@pytest.mark.parametrize('spaces', [True, False])
def test_a_data_set_cannot_name_a_function_to_call(mazes, tmp_path, change, spaces):
    """Minari makes the environment for the time step, and earlier, for the spaces where the metadata lack them."""
    folder, made = tmp_path / 'copy', tmp_path / 'made'
    shutil.copytree(mazes, folder)
    path = next(folder.glob('**/metadata.json'))
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata['env_spec'])
    change(spec, made)
    metadata['env_spec'] = json.dumps(spec)
    if not spaces:
        del metadata['observation_space'], metadata['action_space']
    path.write_text(json.dumps(metadata))
    assert 'env_spec has the entry point' in refused(ValueError, lambda: load_episodes(folder))
    assert not made.exists()


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"total_episodes": "x"}', '{' * 5000, '\x00'])
def test_metadata_that_says_nothing(mazes, tmp_path, text):
    folder = tmp_path / 'copy'
    shutil.copytree(mazes, folder)
    next(folder.glob('**/metadata.json')).write_text(text)
    assert str(folder) in refused(ValueError, lambda: load_episodes(folder))
