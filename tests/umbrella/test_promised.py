"""The promised snippets, each run as it stands in a script of its own.

What is not as it stands: a line that a snippet takes for granted comes first (`import torch`, a model, data), what it
promises in words is asserted after it, and 'cuda' becomes 'cpu' without a GPU. In the last one always: it compares a
model on the CPU with a worker bit for bit, which holds where both compute on the same device.
"""

import textwrap

import pytest
import torch

from tests.markdown import run

ONE_LINE = """
import torch
import ai.model as m
env = lambda model, batch, step: model(batch).square().mean()
data = torch.randn(4, 8, 3).unbind()
model = m.Model(m.fc(3, 1)).init()
opt = torch.optim.SGD(model.parameters(), lr=.1)

import ai

ai.Trainer(env, data).train(model, opt)
"""

MNIST = """
import ai
import ai.model as m

model = m.Model(m.seq(m.flatten(), m.fc(784, 10))).init()

trainer = ai.Trainer(
    ai.train.Classify(),
    ai.data.mnist_dataset().loader(batch_size=32, device='cpu'),
)

trainer.train(model, ai.opt.sgd(model))
"""

FULLY_CONNECTED = """
import ai.model as m
from math import prod

class FullyConnected(m.Model):
    def __init__(self, shape_in=[1, 28, 28], n_out=10, dim=128, n_layers=4):
        super().__init__(m.seq(
            m.flatten(),
            m.fc(prod(shape_in), dim, actv='relu'),
            m.repeat(n_layers, m.fc(dim, dim, actv='relu')),
            m.fc(dim, n_out),
        ))

model = FullyConnected().init() # randomly init params

some_path = 'model.pt'
model.save(some_path)

model = FullyConnected().init(some_path) # load params from disk

import torch
loaded = torch.load(some_path, weights_only=True)
assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
assert model.n_params == 784 * 128 + 128 + 4 * (128 * 128 + 128) + 128 * 10 + 10
"""

THREE_WAYS = """
import ai.model as m

# 1
class MyModel(m.Model):
    def __init__(self):
        super().__init__(m.seq(
            m.flatten(),
            m.fc(8, 8),
        ))
model = MyModel()

import torch
x = torch.randn(4, 2, 4)
first = MyModel().init(seed=0)

# 2
class MyModel(m.Model):
    def __init__(self):
        super().__init__()
        self.net = m.fc(8, 8)
    def forward(self, x):
        x = m.f.flatten(x)
        return self.net(x)
model = MyModel()

second = MyModel().init(seed=0)

# 3
model = m.Model(m.seq(m.flatten(), m.fc(8, 8)))

third = model.init(seed=0)
assert torch.equal(first(x), second(x)) and torch.equal(first(x), third(x))
"""

AUTOENCODER = """
import ai.model as m

class ImgAutoencoder(m.Model):
    def __init__(self,
        imsize,
        bottleneck,
        nc_img=3,
        nc_min=32,
        nc_max=512,
        enc_block=lambda size, nc1, nc2: m.resblk(nc1, nc2, stride=2),
        dec_block=lambda size, nc1, nc2: m.resblk(nc1, nc2, stride=0.5),
    ):
        super().__init__()

        self.encode = m.seq(
            m.conv(nc_img, nc_min, actv='mish'),
            m.pyramid(imsize, bottleneck, nc_min, nc_max, enc_block),
        )

        self.decode = m.seq(
            m.pyramid(bottleneck, imsize, nc_min, nc_max, dec_block),
            m.conv(nc_min, nc_img, actv='tanh'),
        )

    def forward(self, x):
        return self.decode(self.encode(x))

import torch
model = ImgAutoencoder(32, 4).init()
x = torch.randn(2, 3, 32, 32)
assert model.encode(x).shape == (2, 256, 4, 4)
assert model(x).shape == x.shape
"""

DATA = """
import ai

batch_size = 64
device = 'cuda'

# load (download first if needed) the MNIST dataset from $AI_DATASETS_PATH/mnist
ds = ai.data.mnist_dataset()
# or alternatively, provide a path
ds = ai.data.mnist_dataset('/tmp/mnist')

# split into a train set and a validation set
train_ds, val_ds = ds.split() # standard split
train_ds, val_ds = ds.split(.9, .1) # custom split

# check length
print(len(train_ds)) # 63000
print(train_ds.length(batch_size)) # 62976 (the length accounting for dropping
                                   # the last incomplete batch)
assert (len(train_ds), train_ds.length(batch_size)) == (63000, 62976)

# load and examine 100 samples
samples = val_ds.sample(100, device)
ai.util.print_info(samples['x']) # shape=[100,1,28,28] bounds=[-1.00,1.00]
                                 # dtype=float32 device=cuda:0
ai.util.print_info(samples['y']) # shape=[100] bounds=[0,9] dtype=uint8
                                 # device=cuda:0

# train loader (shuffles and loops infinitely)
train_loader = train_ds.loader(batch_size, device, train=True)
# val loader (doesnt shuffle and loops for one epoch)
val_loader = val_ds.loader(batch_size, device, train=False)

# iterate via loop:
for batch in val_loader:
    pass
# or:
val_iterator = iter(val_loader)
batch = next(val_iterator)
assert batch['x'].shape == (64, 1, 28, 28) and len(val_loader) == 110
"""

INFER = """
import ai
import torch

# using an MNIST model as an example
model = ai.examples.mnist.Model().init()

# spawn a worker process
inferencer = ai.infer.Inferencer(
    model,
    'cuda', # the worker will move the model to this device
    64, # the maximum inference batch size (will be less if there arent
        # sufficient requests available at the moment)
)

# the inferencer can be used as if it is the model
x = torch.randn(1, 1, 28, 28)
y1 = model(x)
y2 = inferencer(x)
assert (y1 == y2).all()

# update the parameters of the worker's model
inferencer.update_params(model.state_dict())

# you can also create an InferencerClient which can make inference requests but
# doesn't hold a reference to the worker (useful when passing it to other
# processes e.g. when data workers need to make inference requests)
client = inferencer.create_client()
y = client(x)

# requests can be made asynchronously
request_id = client.infer_async(x)
y = client.wait_for_resp(request_id)
assert torch.equal(y, y2)

# you can stop the worker directly via
del inferencer
# or you can just let `inferencer` go out of scope
"""

INFER_SHORT = """
import ai
import torch
model = ai.examples.mnist.Model().init()
x = torch.randn(1, 1, 28, 28)

inferencer = ai.infer.Inferencer(model) # launch inference worker
y = inferencer(x) # call worker
del inferencer # stop worker
assert torch.equal(y, model(x))
"""

SNIPPETS = {
    "one line": ONE_LINE,
    "mnist": MNIST,
    "fully connected": FULLY_CONNECTED,
    "three ways": THREE_WAYS,
    "autoencoder": AUTOENCODER,
    "data": DATA,
    "infer, in short": INFER_SHORT,
    "infer": INFER.replace("'cuda'", "'cpu'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
def test_the_snippet_runs_as_it_stands(name, datasets, tmp_path):
    code = textwrap.dedent(SNIPPETS[name]).replace("/tmp/mnist", str(datasets / "mnist"))
    if not torch.cuda.is_available():
        code = code.replace("'cuda'", "'cpu'")
    run(code, name, tmp_path, AI_DATASETS_PATH=str(datasets))
