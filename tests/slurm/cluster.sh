#!/usr/bin/env bash
# A Slurm cluster on this machine alone, for tests: one controller and two nodes (n1, n2), each with
# a GPU that is none. Needs root and Debian's slurm-wlm and munge; no systemd, no cgroups, and
# nothing that listens beyond the loopback address.
#
#   cluster.sh install      install what is missing, where that can be done
#   cluster.sh up FOLDER    start it; its configuration, state and logs are in FOLDER
#   cluster.sh down FOLDER  stop what `up` started, and wait until it has ended
set -euo pipefail

action=${1:?install, up or down}
controller_port=26817
node_port=26820
longest=1800 # seconds, after which every daemon ends by itself
configuration=/etc/slurm

installed() { command -v slurmctld slurmd munged sbatch >/dev/null; }

if [[ $action == install ]]; then
  installed && exit 0
  [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || exit 1
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
  exit
fi

folder=${2:?the folder of the cluster}
daemons=(slurmd-n1 slurmd-n2 slurmctld munged) # in the order in which they are stopped

# A process id may have passed to another process, so what it runs is looked at.
running() { [[ -s $folder/$1.pid ]] && grep -qsa "^timeout" "/proc/$(<"$folder/$1.pid")/cmdline"; }

start() { # NAME COMMAND...
  local name=$1
  shift
  setsid timeout --kill-after=5 "$longest" "$@" >"$folder/$name.out" 2>&1 </dev/null &
  echo $! >"$folder/$name.pid"
}

stop() {
  if running slurmctld; then
    timeout 5 scancel --user="$(id -un)" || true
    for _ in {1..60}; do
      [[ -z $(timeout 5 squeue --noheader) ]] && break
      sleep 0.3
    done
  fi
  for name in "${daemons[@]}"; do
    running "$name" || continue
    kill -TERM "$(<"$folder/$name.pid")" || true
    for _ in {1..80}; do
      running "$name" || break
      sleep 0.1
    done
    if running "$name"; then kill -KILL -- "-$(<"$folder/$name.pid")" || true; fi
  done
  for file in slurm.conf gres.conf; do
    if [[ $(readlink "$configuration/$file") == "$folder/$file" ]]; then rm "$configuration/$file"; fi
  done
}

# both nodes take work
ready() { [[ $(timeout 3 sinfo --noheader --Node --format=%T 2>/dev/null | grep -c '^idle$') == 2 ]]; }

write_configuration() {
  local host cpus memory
  host=$(hostname -s)
  cpus=$(nproc --all) # plain nproc heeds OMP_NUM_THREADS
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  cat >"$folder/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.own-pid
SlurmdPidFile=$folder/slurmd-%n.own-pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=100000,bf_interval=2,batch_sched_delay=1
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
MinJobAge=3600
SlurmdTimeout=60
KillWait=10
DefMemPerCPU=500
GresTypes=gpu
END
  for node in 1 2; do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((node_port + node))" \
      "CPUs=$cpus RealMemory=$memory Gres=gpu:1 State=UNKNOWN"
  done >>"$folder/slurm.conf"
  echo "PartitionName=all Nodes=n[1-2] Default=YES MaxTime=1-00:00:00 State=UP" >>"$folder/slurm.conf"
  echo "Name=gpu File=/dev/null" >"$folder/gres.conf"
}

start_daemons() {
  start munged runuser -u munge -- munged --foreground --force --num-threads=2 \
    --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed"
  for _ in {1..50}; do
    [[ -S $folder/munge/socket ]] && break
    sleep 0.1
  done
  start slurmctld slurmctld -D -i -f "$folder/slurm.conf"
  for node in n1 n2; do start "slurmd-$node" slurmd -D -N "$node" -f "$folder/slurm.conf"; done
}

case $action in
  up)
    # Snakemake takes every SLURM_* variable from its jobs, SLURM_CONF too, so the configuration
    # has to be where Slurm looks by itself; a machine that has one is left alone.
    for file in slurm.conf gres.conf; do
      if [[ -e $configuration/$file ]]; then
        echo "$configuration/$file is there already: this machine has a Slurm of its own." >&2
        exit 1
      fi
    done
    mkdir -p "$folder"/{state,munge} "$configuration"
    chmod 755 "$folder" "$folder/munge"
    head -c 128 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    chown -R munge: "$folder/munge"
    write_configuration
    for file in slurm.conf gres.conf; do ln -sfn "$folder/$file" "$configuration/$file"; done
    start_daemons
    for _ in {1..100}; do
      ready && exit 0
      sleep 0.3
    done
    tail -n 20 "$folder"/*.out >&2
    stop
    exit 1
    ;;
  down) stop ;;
  *) exit 2 ;;
esac
