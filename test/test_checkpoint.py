"""Checkpoints and configuration: what is written is read back, what is wrong is named."""

from dataclasses import dataclass

import pytest
import torch
import yaml
from checkpoints import untrained

from diffuser_core.checkpoint import Checkpoint, CheckpointError
from diffuser_core.config import ConfigError, load_config
from diffuser_core.shipped import config_folder
from diffuser_core.train.config import TrainConfig
from diffuser_core.trajectory import Channels

CHANNELS = Channels(('push', 'x'), ('N', 'm'), actions=1)


@pytest.fixture
def folder(tmp_path):
    untrained(CHANNELS, goal=('x',)).save(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint'


def test_round_trip(folder):
    original, again = untrained(CHANNELS, goal=('x',)), Checkpoint.load(folder)
    assert again.channels == CHANNELS and again.goal == ('x',) and again.model == original.model
    assert again.horizon == 16 and again.step_dt == 0.1 and again.provenance == {'made': 'by a test'}
    x, i = torch.randn(2, 16, 2), torch.tensor([3, 4])
    assert torch.equal(original.network()(x, i), again.network()(x, i))
    assert 'push [N], x [m]' in again.describe()


def test_saving_replaces_in_one_step_and_leaves_nothing_else(folder):
    untrained(CHANNELS, horizon=32).save(folder)
    assert Checkpoint.load(folder).horizon == 32
    assert [p.name for p in folder.parent.iterdir()] == ['checkpoint']
    assert sorted(p.name for p in folder.iterdir()) == ['config.yaml', 'model.safetensors']


def test_missing_checkpoint_names_the_place(tmp_path):
    with pytest.raises(CheckpointError, match=f'no checkpoint at {tmp_path}/nowhere: config.yaml is missing'):
        Checkpoint.load(tmp_path / 'nowhere')


def test_damaged_weights_are_noticed(folder):
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(data)
    with pytest.raises(CheckpointError, match='model.safetensors is damaged'):
        Checkpoint.load(folder)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda d: d.update(format=7), 'format must be 2, got 7'),
    (lambda d: d.pop('normalizer'), 'missing normalizer'),
    (lambda d: d['normalizer'].update(scale=[1.0, 0.0]), 'positive finite scales'),
    (lambda d: d['normalizer'].update(scale=[1.0], offset=[1.0]), 'normalizer.offset must be 2 numbers'),
    (lambda d: d['model'].update(depth=3), "unknown key 'depth'; allowed here: width, multipliers"),
    (lambda d: d['model'].update(width=16), 'does not fit the network'),
    (lambda d: d['diffusion'].update(prediction='score'), "must be one of x0, epsilon, v, got 'score'"),
    (lambda d: d.update(goal=['z']), 'unknown channel z'),
    (lambda d: d.update(channels='x'), 'channels must be a list'),
    (lambda d: d['channels'][0].pop('unit'), 'unit'),
    (lambda d: d.update(step_dt=0.0), 'step_dt positive'),
    (lambda d: d.update(horizon='long'), 'config.yaml'),
])
def test_a_wrong_description_names_file_and_field(folder, change, message):
    described = yaml.safe_load((folder / 'config.yaml').read_text())
    change(described)
    (folder / 'config.yaml').write_text(yaml.safe_dump(described))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.load(folder).network()


@pytest.mark.parametrize('text', ['', '[1, 2', '\x00', 'just words', '- 1'])
def test_a_description_that_is_no_description(folder, text):
    (folder / 'config.yaml').write_text(text)
    with pytest.raises(CheckpointError, match='config.yaml'):
        Checkpoint.load(folder)


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.5
    inner: Inner = Inner()
    lengths: tuple[int, ...] = ()
    limit: int | None = None


@pytest.mark.parametrize(('text', 'message'), [
    ('nam: x', "unknown key 'nam'; allowed here: name, rate, inner, lengths, limit"),
    ('rate: 1.0', "the key 'name' is missing"),
    ('name: 3', 'name must be of type str, got 3'),
    ('{name: a, inner: {sise: 2}}', "inner: unknown key 'sise'; allowed here: size"),
    ('{name: a, lengths: [1, b]}', r"lengths\[1\] must be of type int, got 'b'"),
    ('{name: a, inner: 3}', 'inner must hold keys and values'),
    ('{name: a, limit: true}', 'limit must be of type int, got True'),
    ('name: [', 'not valid YAML'),
    ('7', 'must hold keys and values, not int'),
])
def test_wrong_configuration_names_the_key(tmp_path, text, message):
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Outer, path)
    assert str(path) in str(caught.value)


def test_configuration_and_overrides(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text('{name: a, rate: 1, lengths: [1, 2]}')
    assert load_config(Outer, path, ['inner.size=4', 'limit=null']) == Outer('a', 1.0, Inner(4), (1, 2))
    with pytest.raises(ConfigError, match="written key=value, got 'inner.size'"):
        load_config(Outer, path, ['inner.size'])
    with pytest.raises(ConfigError, match="goes below 'name', which is a value"):
        load_config(Outer, path, ['name.first=b'])
    with pytest.raises(ConfigError, match='cannot read the configuration'):
        load_config(Outer, tmp_path / 'none.yaml')


def test_the_shipped_training_configuration_is_valid():
    config = load_config(TrainConfig, config_folder() / 'kuka_stack.yaml')
    assert config.name == 'kuka_stack'
    with pytest.raises(ConfigError, match='horizon must be a multiple of 4'):
        load_config(TrainConfig, config_folder() / 'kuka_stack.yaml', ['data.horizon=63'])
