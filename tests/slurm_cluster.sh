#!/usr/bin/env bash
# A one-node SLURM cluster for the tests, everything of it under one folder:
#
#     tests/slurm_cluster.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf && sinfo
#     tests/slurm_cluster.sh stop FOLDER
#
# Needs root and Debian's packages: apt-get install slurm-wlm munge
set -euo pipefail
verb=${1:?start or stop}
folder=$(realpath -m "${2:?a folder for the cluster}")
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$folder/slurm.conf

stop() {
    for daemon in slurmctld slurmd munged; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    mkdir -p "$folder"/{state,spool}
    chmod 755 "$folder"
    head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 600 "$folder/munge.key"
    # --force: a folder under /tmp is anyone's to write to, which munged else refuses for its key and socket
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" --num-threads=2
    cat > "$SLURM_CONF" <<END
ClusterName=book
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again only when its old credential has expired: 2 minutes, were it not for this.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=20
# A job that can never start is refused at once.
EnforcePartLimits=ALL
MinJobAge=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc --all) State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF State=UP
END
    slurmctld
    slurmd
    for _ in $(seq 100); do
        [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle* ]] && return
        sleep 0.2
    done
    echo "the cluster did not come up:" >&2
    tail -n 20 "$folder"/{munged,slurmctld,slurmd}.log >&2
    stop
    exit 1
}

"$verb"
