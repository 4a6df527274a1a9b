// Package robustness judges megacluster-store by etcd's own robustness packages: Kubernetes' traffic
// on the real process while it is killed and loses power, and etcd's validator on what the clients saw
// against what the store persisted (linearizability by porcupine, the guarantees of watches, reads at
// old revisions).
package robustness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"go.etcd.io/etcd/tests/v3/framework/e2e"
	"go.etcd.io/etcd/tests/v3/robustness/client"
	"go.etcd.io/etcd/tests/v3/robustness/identity"
	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/traffic"
	"go.etcd.io/etcd/tests/v3/robustness/validate"

	"megacluster.io/tests/robustness/store"
)

// Set by ./run.
const (
	binaryVariable  = "STORE_BINARY"
	roundsVariable  = "ROBUSTNESS_ROUNDS"
	killsVariable   = "ROBUSTNESS_KILLS"
	seedVariable    = "SEED"
	historyVariable = "ROBUSTNESS_HISTORY"
	// Seconds in which an order of all operations must be found.
	patienceVariable = "ROBUSTNESS_PATIENCE"
)

func number(t *testing.T, variable string, usual int64) int64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := number(t, seedVariable, time.Now().UnixNano())
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewSource(seed))
}

func newServer(t *testing.T, flags ...string) *store.Server {
	t.Helper()
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		t.Skip("start this by ./run")
	}
	server := &store.Server{Binary: binary, Root: t.TempDir(), Flags: flags}
	t.Cleanup(func() {
		_ = server.Kill()
		if t.Failed() {
			t.Logf("the last life said:\n%s", server.Output())
		}
	})
	return server
}

// disturb does something to the running server, once.
type disturb func() error

// run lets Kubernetes' traffic loose, disturbs the server so many times, and gives what clients saw.
func run(t *testing.T, server *store.Server, kind traffic.Traffic, profile traffic.Profile, times int64, random *rand.Rand, what disturb) []report.ClientReport {
	t.Helper()
	// A slow machine must not turn every request into an uncertain one.
	traffic.RequestTimeout = time.Second
	profile.MinimalQPS = 1
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	cluster := &e2e.EtcdProcessCluster{Procs: []e2e.EtcdProcess{server.Member()}}
	logger := zap.NewNop()
	ids := identity.NewIDProvider()
	base := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	disturbed := make(chan report.FailpointInjection, 1)
	newest := make(chan int64, 1)
	// When the last disturbance was over, in nanoseconds since base.
	var settled atomic.Int64
	var operations, watches []report.ClientReport
	var group errgroup.Group
	group.Go(func() error {
		defer close(disturbed)
		time.Sleep(time.Second)
		begin := time.Since(base)
		for range times {
			if err := what(); err != nil {
				cancel()
				return err
			}
			settled.Store(time.Since(base).Nanoseconds())
			// gRPC's first try to connect again comes after a second. One in four comes before it.
			pause := time.Duration(random.Intn(50)) * time.Millisecond
			if random.Intn(4) != 0 {
				pause = 1200*time.Millisecond + time.Duration(random.Intn(1200))*time.Millisecond
			}
			time.Sleep(pause)
		}
		// The last write must succeed: let every client find the way back.
		time.Sleep(4 * time.Second)
		disturbed <- report.FailpointInjection{Name: "disturbed", Start: begin, End: time.Since(base)}
		return nil
	})
	group.Go(func() error {
		defer close(newest)
		operations = traffic.SimulateTraffic(ctx, t, logger, cluster, profile, kind, disturbed, base, ids)
		// What watches have to reach. A revision from before the last disturbance may never come
		// again where the disk lied, and is not above those after it where it did not.
		highest := int64(0)
		for _, client := range operations {
			for _, operation := range client.KeyValue {
				if operation.Call > settled.Load() {
					highest = max(highest, operation.Output.(model.MaybeEtcdResponse).Revision)
				}
			}
		}
		newest <- highest
		return nil
	})
	group.Go(func() error {
		config := client.WatchConfig{RequestProgress: true}
		watches = client.CollectClusterWatchEvents(ctx, t, cluster, newest, config, base, ids)
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	clients := append(operations, watches...)
	return append(clients, store.Compactions(server.Recoveries(), base, clients, ids.NewClientID(), ids.NewStreamID()))
}

// account adds what the store persisted.
func account(t *testing.T, server *store.Server, clients []report.ClientReport) store.History {
	t.Helper()
	records, err := server.Dump(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	persisted, err := store.Persisted(records, clients)
	if err != nil {
		t.Fatal(err)
	}
	acknowledged, failed, events := 0, 0, 0
	for _, client := range clients {
		acknowledged += store.Acknowledged(client.KeyValue)
		events += client.WatchEventCount()
		for _, operation := range client.KeyValue {
			if operation.Output.(model.MaybeEtcdResponse).Error != "" {
				failed++
			}
		}
	}
	t.Logf("%d writes acknowledged, %d requests without an answer, %d watch events, %d requests persisted",
		acknowledged, failed, events, len(persisted))
	if acknowledged < 100 || events < 100 {
		t.Errorf("%d writes and %d events prove too little", acknowledged, events)
	}
	return store.History{Clients: clients, Persisted: persisted}
}

// judge runs etcd's validator, which speaks by failing a test, in a process of its own.
func judge(t *testing.T, history store.History, patience time.Duration) (string, bool) {
	t.Helper()
	dir := t.TempDir()
	if err := history.Save(dir); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(os.Args[0], "-test.run=^TestJudge$", "-test.v", "-test.timeout=15m")
	command.Env = append(os.Environ(), historyVariable+"="+dir, fmt.Sprintf("%s=%d", patienceVariable, int(patience.Seconds())))
	output, err := command.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if !strings.Contains(string(output), "judged") {
		t.Fatalf("there was no judgement:\n%s", output)
	}
	return string(output), err == nil
}

// must expects that a history is found good. A bad one is kept where the machine's temporary files are.
func must(t *testing.T, history store.History) {
	t.Helper()
	if lost := history.Lost(); lost > 0 {
		t.Errorf("%d acknowledged writes are not in the store's log", lost)
	}
	output, good := judge(t, history, 5*time.Minute)
	if good {
		return
	}
	kept, err := os.MkdirTemp("", "robustness-history-")
	if err == nil {
		err = history.Save(kept)
	}
	t.Fatalf("etcd's validator refuses the history, which is kept in %s (%v):\n%s", kept, err, output)
}

// mustNot expects that a history is found bad, for a reason that is one of the validator's.
func mustNot(t *testing.T, history store.History) {
	t.Helper()
	// That there is no order at all may take for ever to show: not found good is enough.
	output, good := judge(t, history, 20*time.Second)
	if good {
		t.Fatalf("a bad history was found good:\n%s", output)
	}
	for _, reason := range []string{"Failed linearization", "Failed validating", "Broken validation assumptions"} {
		if strings.Contains(output, reason) {
			t.Logf("refused: %s", reason)
			return
		}
	}
	t.Fatalf("refused for another reason:\n%s", output)
}

// TestJudge is the process that judge starts.
func TestJudge(t *testing.T) {
	dir := os.Getenv(historyVariable)
	if dir == "" {
		t.Skip("started by other tests")
	}
	history, err := store.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fmt.Println("judged")
	config := zap.NewDevelopmentConfig()
	logger, err := config.Build()
	if err != nil {
		t.Fatal(err)
	}
	visualize := validate.ValidateAndReturnVisualize(t, logger, validate.Config{ExpectRevisionUnique: true},
		history.Clients, history.Persisted, time.Duration(number(t, patienceVariable, 300))*time.Second)
	if t.Failed() {
		if err := visualize(filepath.Join(dir, "history.html")); err != nil {
			t.Log(err)
		}
	}
}

// small makes snapshots come often.
const small = "--snapshot-log-bytes=150000"

func kinds(round int64) traffic.Traffic {
	return []traffic.Traffic{traffic.Kubernetes, traffic.KubernetesCreateDelete}[round%2]
}

// The process dies and comes back, with snapshots in between: nobody sees anything but a pause.
func TestKilled(t *testing.T) {
	random := newRandom(t)
	for round := range number(t, roundsVariable, 1) {
		server := newServer(t, small)
		clients := run(t, server, kinds(round), traffic.LowTraffic, number(t, killsVariable, 6), random, func() error {
			if err := server.Kill(); err != nil {
				return err
			}
			return server.Start()
		})
		history := account(t, server, clients)
		must(t, history)
		if round == 0 {
			t.Run("OneLostWriteIsFound", func(t *testing.T) { mustNot(t, withoutOneWrite(t, history, random)) })
			t.Run("OneOldAnswerIsFound", func(t *testing.T) { mustNot(t, withOneOldAnswer(t, history)) })
		}
	}
}

// withoutOneWrite forgets a write that a client was told of.
func withoutOneWrite(t *testing.T, history store.History, random *rand.Rand) store.History {
	t.Helper()
	told := map[string]bool{}
	for _, client := range history.Clients {
		for _, operation := range client.KeyValue {
			if store.Acknowledged([]porcupine.Operation{operation}) == 1 {
				told[content(t, operation.Input)] = true
			}
		}
	}
	// Not the first or the last, whose absence is looked for by itself.
	middle := len(history.Persisted) / 4
	for range 1000 {
		at := middle + random.Intn(2*middle)
		if told[content(t, history.Persisted[at])] {
			persisted := append([]model.EtcdRequest{}, history.Persisted[:at]...)
			persisted = append(persisted, history.Persisted[at+1:]...)
			return store.History{Clients: history.Clients, Persisted: persisted}
		}
	}
	t.Fatal("no write was acknowledged")
	return store.History{}
}

func content(t *testing.T, request any) string {
	t.Helper()
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// withOneOldAnswer gives a client the answer to its list that it had before.
func withOneOldAnswer(t *testing.T, history store.History) store.History {
	t.Helper()
	changed := store.History{Persisted: history.Persisted}
	done := false
	for _, client := range history.Clients {
		copied := client
		copied.KeyValue = append(client.KeyValue[:0:0], client.KeyValue...)
		var before *model.MaybeEtcdResponse
		for i, operation := range copied.KeyValue {
			request := operation.Input.(model.EtcdRequest)
			response := operation.Output.(model.MaybeEtcdResponse)
			if done || request.Type != model.Range || request.Range.Revision != 0 || response.Error != "" {
				continue
			}
			if before != nil && before.Revision < response.Revision-10 {
				copied.KeyValue[i].Output = *before
				done = true
			}
			before = &response
		}
		changed.Clients = append(changed.Clients, copied)
	}
	if !done {
		t.Fatal("no client listed twice")
	}
	return changed
}

// The machine loses power: what was not synced is gone in part, sector by sector. Nobody notices, as
// every write was synced before it was acknowledged.
func TestPowerLost(t *testing.T) {
	random := newRandom(t)
	for round := range number(t, roundsVariable, 1) {
		server := newServer(t, small)
		server.Traced = true
		// A disk that takes its time, so that more is under way when the power goes.
		server.Inject = "fdatasync:delay_enter=3000"
		var all store.Loss
		clients := run(t, server, kinds(round), traffic.LowTraffic, number(t, killsVariable, 6), random, func() error {
			if err := server.Kill(); err != nil {
				return err
			}
			loss, err := server.LosePower(random, true)
			if err != nil {
				return err
			}
			all.Bytes += loss.Bytes
			all.Names += loss.Names
			return server.Start()
		})
		t.Logf("%d bytes and %d names were lost with the power", all.Bytes, all.Names)
		must(t, account(t, server, clients))
	}
}

// A disk that says it synced and did not: proof that this harness sees a write that was acknowledged
// and lost. Without holes, as with them the store sees the lie itself: a later block names how much
// of the log was synced, and the start is refused.
func TestALyingDiskIsFound(t *testing.T) {
	random := newRandom(t)
	server := newServer(t)
	server.Traced = true
	// Each thread of the store may sync so often before the lies begin.
	server.Inject = "fdatasync:retval=0:when=60+"
	lost := store.Loss{}
	// etcd's compactor relies on the key it wrote, and panics where the disk has lost it.
	profile := traffic.LowTraffic
	profile.ForbidCompaction = true
	clients := run(t, server, traffic.Kubernetes, profile, 1, random, func() error {
		time.Sleep(3 * time.Second)
		if err := server.Kill(); err != nil {
			return err
		}
		var err error
		if lost, err = server.LosePower(random, false); err != nil {
			return err
		}
		server.Inject = ""
		return server.Start()
	})
	if lost.Bytes == 0 {
		t.Fatal("nothing was lost")
	}
	history := account(t, server, clients)
	t.Logf("%d bytes and %d acknowledged writes were lost", lost.Bytes, history.Lost())
	if history.Lost() == 0 {
		t.Fatal("no acknowledged write was lost")
	}
	mustNot(t, history)
}
