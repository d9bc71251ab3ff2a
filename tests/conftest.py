"One thread a worker: two workers whose kernels use every core each wait for one another, and take ten times as long."
import os
os.environ.update(OMP_NUM_THREADS='1', MPLBACKEND='agg') # read when torch and matplotlib are imported; what the tests start has them too
