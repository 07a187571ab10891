import time,os,sys
D=float(os.environ['D'])
print('up',flush=True)
c=os.times()
t=time.time()
while time.time()-t<D: pass
d=os.times()
print(d.user+d.system-c.user-c.system, os.nice(0), os.sched_getscheduler(0))