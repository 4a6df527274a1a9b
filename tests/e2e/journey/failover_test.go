package journey

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The campaign: leaders, shards, front doors and apiservers are killed, stopped and rolled out, each
// several times, and a client outside measures how long it goes without. FAILOVER_ROUNDS says how
// often; FAILOVER_TABLE names a file to which each row of the table is added.
//
// The goals are those of a machine that the cluster has for itself. A round over its goal in which
// other processes used the machine's CPUs is not taken for the cluster's doing: it is repeated. What
// must never happen (a pod lost or bound twice, an event lost, two leaders) fails in any round.

const (
	shortRounds = 2
	// Other processes' use of CPUs, in CPUs, from which on a round was not the cluster's own.
	disturbed = 0.4
	// So many rounds for each that is wanted are tried on a machine that others use.
	tries = 3
)

func failoverRounds() int {
	if rounds, err := strconv.Atoi(os.Getenv("FAILOVER_ROUNDS")); err == nil && rounds > 0 {
		return rounds
	}
	return shortRounds
}

// round is one measurement. What comes before begin and after end isn't measured.
type round struct {
	number int
	began  time.Time
	took   time.Duration
	others float64
	before cpuTimes
}

func (r *round) begin() {
	r.before = readCPU()
	r.began = time.Now()
}

func (r *round) end() { r.endWith(time.Since(r.began)) }

// endWith ends the round, whose figure is not the time that it took.
func (r *round) endWith(took time.Duration) {
	elapsed := time.Since(r.began)
	after := readCPU()
	r.took = took
	r.others = after.others(r.before) / elapsed.Seconds()
}

// row is one line of the table: a figure, measured several times.
type row struct {
	t      *testing.T
	name   string
	goal   time.Duration
	took   []time.Duration
	unsure int
	// Why the goal isn't reached yet, or isn't known to be: a round over it is told, and no failure.
	open string
	// Components whose logs tell why a round was over the goal.
	witnesses []string
}

func newRow(t *testing.T, name string, goal time.Duration) *row {
	return &row{t: t, name: name, goal: goal}
}

// notHeld says why a round over the goal is no failure yet.
func (r *row) notHeld(why string) *row {
	r.open = why
	return r
}

// witnessedBy names the components whose logs are shown of a round over the goal.
func (r *row) witnessedBy(components ...string) *row {
	r.witnesses = components
	return r
}

// testify shows what the witnesses have logged since the round began.
func (r *row) testify(one *round) {
	r.t.Helper()
	for _, component := range r.witnesses {
		selector := "megacluster.io/name=" + name + ",app.kubernetes.io/component=" + component
		logs, err := management.kubectl(r.t.Context(), "", "-n", namespace, "logs", "--prefix", "--tail=200", "--selector="+selector,
			"--since-time="+one.began.UTC().Format(time.RFC3339Nano))
		r.t.Logf("%s, since %s: %v\n%s", component, one.began.UTC().Format(time.StampMilli), err, logs)
	}
}

// add takes a round in, unless it has to be repeated.
func (r *row) add(one *round) {
	r.t.Helper()
	over := one.took > r.goal
	r.t.Logf("%s, round %d: %s; other processes used %.2f CPUs", r.name, one.number, one.took.Round(time.Millisecond), one.others)
	if over {
		r.testify(one)
	}
	if over && one.others > disturbed {
		r.unsure++
		return
	}
	switch {
	case over && r.open != "":
		r.t.Logf("%s: more than %s, which is not held yet: %s", r.name, r.goal, r.open)
	case over:
		r.t.Errorf("%s, round %d: %s, more than %s", r.name, one.number, one.took.Round(time.Millisecond), r.goal)
	}
	r.took = append(r.took, one.took)
}

// wants says whether another round is to be measured.
func (r *row) wants() bool {
	rounds := failoverRounds()
	return len(r.took) < rounds && len(r.took)+r.unsure < tries*rounds && !(r.t.Failed() && len(r.took) == 0)
}

// next gives the round to measure now.
func (r *row) next() *round { return &round{number: len(r.took) + r.unsure + 1} }

// write ends the row: into the log, and into the table.
func (r *row) write() {
	r.t.Helper()
	if len(r.took) == 0 {
		r.t.Logf("%s: not judged, other processes used the machine in all of %d rounds", r.name, r.unsure)
		return
	}
	sorted := slices.Sorted(slices.Values(r.took))
	middle, worst := sorted[len(sorted)/2], sorted[len(sorted)-1]
	over := 0
	for _, took := range sorted {
		if took > r.goal {
			over++
		}
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	line := fmt.Sprintf("| %s | %s | %s | %s | %d of %d |", r.name, seconds(r.goal), seconds(middle), seconds(worst), over, len(sorted))
	r.t.Logf("goal, middle, worst, over the goal: %s", line)
	path := os.Getenv("FAILOVER_TABLE")
	if path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, line); err != nil {
		r.t.Error(err)
	}
}

// measure runs rounds until there are enough of them.
func (r *row) measure(one func(*round)) {
	r.t.Helper()
	for r.wants() {
		round := r.next()
		one(round)
		r.add(round)
	}
	r.write()
}

// cpuTimes are seconds of CPU since the machine started.
type cpuTimes struct{ all, cluster float64 }

// others is what processes used that belong neither to the cluster nor to this test.
func (c cpuTimes) others(before cpuTimes) float64 {
	return max(0, c.all-before.all-(c.cluster-before.cluster))
}

const ticksPerSecond = 100

// readCPU sums up what was used, by all and by the processes below the node's first one, its parent
// and this test. A process's time is counted in hundredths of a second.
func readCPU() cpuTimes {
	var times cpuTimes
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return times
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	for place, field := range strings.Fields(line)[1:] {
		// user nice system idle iowait irq softirq steal; guests are in user.
		if ticks, err := strconv.ParseFloat(field, 64); err == nil && place != 3 && place != 4 && place < 8 {
			times.all += ticks / ticksPerSecond
		}
	}
	type process struct {
		parent int
		ticks  float64
	}
	all := map[int]process{}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		end := strings.LastIndexByte(string(content), ')')
		if err != nil || end < 0 {
			continue
		}
		fields := strings.Fields(string(content[end+1:]))
		if len(fields) < 15 {
			continue
		}
		one := process{}
		one.parent, _ = strconv.Atoi(fields[1])
		// utime stime, and those of children that were waited for.
		for _, field := range fields[11:15] {
			ticks, _ := strconv.ParseFloat(field, 64)
			one.ticks += ticks
		}
		all[pid] = one
	}
	node, _ := strconv.Atoi(os.Getenv("NODE_PID"))
	above := all[node].parent
	ours := func(pid int) bool {
		for ; pid > 1; pid = all[pid].parent {
			if pid == node || pid == above || pid == os.Getpid() {
				return true
			}
		}
		return false
	}
	for pid, one := range all {
		if ours(pid) {
			times.cluster += one.ticks / ticksPerSecond
		}
	}
	return times
}

// soon repeats a request until it succeeds, without a pause that would show in a figure.
func soon(t *testing.T, what string, request func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 2*time.Second)
		err := request(attempt)
		stop()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			// Not Fatalf: it may be called beside the test.
			t.Errorf("%s: %v", what, err)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sortEvents sorts by time; of one moment, what is false before what is true.
func sortEvents[E any](events []E, key func(E) (time.Time, bool)) {
	slices.SortStableFunc(events, func(a, b E) int {
		first, late := key(a)
		second, later := key(b)
		switch order := first.Compare(second); {
		case order != 0:
			return order
		case late == later:
			return 0
		case late:
			return 1
		}
		return -1
	})
}
