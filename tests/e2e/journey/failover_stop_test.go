package journey

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// How long a leader is stopped.
const stopped = 30 * time.Second

// TestFailoverLeadersStopped stops three leaders at once by SIGSTOP, as a machine that hangs would:
// the controller manager's, the relays' and the operator's. Each is taken over from within two
// seconds, and does no harm when it wakes up.
func TestFailoverLeadersStopped(t *testing.T) {
	ns := scratch(t)
	nodes := nodeNames(t)
	seen := follow(t, ns)
	rows := map[string]*row{}
	for _, component := range []elected{controllerManager, relay, operator} {
		rows[component.component] = newRow(t, component.component+" stopped for 30 s: another one has done its work", 2*time.Second)
	}
	for rows["operator"].wants() || rows["scheduler-relay"].wants() || rows["controller-manager"].wants() {
		number := rows["operator"].next().number
		leaders := []elected{controllerManager, relay, operator}
		before, victims, pids := make([]leads, 3), make([]*corev1.Pod, 3), make([][]int, 3)
		for i, e := range leaders {
			before[i], victims[i] = e.warm(t)
			pids[i] = processes(t, victims[i])
		}
		binds := bindsSent(t, victims[1])
		work := []func(){
			func() {
				app := fmt.Sprintf("stopped-%d", number)
				deploy(t, ns, app, 3)
				seen.until(t, "three pods", func() bool { return seen.created[app] == 3 })
			},
			func() {
				prefix := fmt.Sprintf("stopped-relay-%d", number)
				pinPods(t, ns, prefix, nodes)
				seen.until(t, "the pods are bound", seen.allBound(prefix))
			},
			func() { childComesBack(t) },
		}
		rounds := make([]*round, 3)
		var measuring sync.WaitGroup
		began := time.Now()
		for i, e := range leaders {
			rounds[i] = &round{number: number}
			rounds[i].begin()
			if signalAll(pids[i], syscall.SIGSTOP) == 0 {
				t.Fatalf("%s: nothing to stop", e.component)
			}
			measuring.Go(func() {
				work[i]()
				rounds[i].end()
			})
		}
		measuring.Wait()
		after := make([]leads, 3)
		for i, e := range leaders {
			rows[e.component].add(rounds[i])
			after[i] = e.tookOver(t, before[i])
		}
		time.Sleep(time.Until(began.Add(stopped)))
		for i := range leaders {
			signalAll(pids[i], syscall.SIGCONT)
		}
		time.Sleep(5 * time.Second)
		wokeUp(t, leaders, before, after)
		if now := bindsSent(t, victims[1]); now > binds {
			t.Errorf("%s sent %d binds after it was stopped", victims[1].Name, now-binds)
		}
		// It ends when it wakes up without the Lease.
		for _, pid := range pids[0] {
			if syscall.Kill(pid, 0) == nil {
				t.Errorf("the old controller manager still runs as process %d", pid)
			}
		}
		for i := range victims {
			renew(t, victims[i])
		}
	}
	for _, component := range []elected{controllerManager, relay, operator} {
		rows[component.component].write()
	}
	seen.boundOnce(t)
}

// wokeUp checks that the old leaders' waking up has changed nothing.
func wokeUp(t *testing.T, leaders []elected, before, after []leads) {
	t.Helper()
	for i, e := range leaders {
		now, err := e.read(t.Context())
		if err != nil {
			t.Errorf("%s: %v", e.component, err)
			continue
		}
		if now.pod != after[i].pod || now.epoch != after[i].epoch {
			t.Errorf("%s: %+v leads after %+v woke up, no more %+v", e.component, now, before[i], after[i])
		}
	}
}

// bindsSent reads how many binds a relay's process has sent and seen the end of.
func bindsSent(t *testing.T, pod *corev1.Pod) int {
	t.Helper()
	sum := 0
	eventually(t, 10*time.Second, "metrics of "+pod.Name, func(ctx context.Context) error {
		body, err := podGet(ctx, pod, 10259, "/metrics")
		if err != nil {
			return err
		}
		sum = 0
		for line := range strings.Lines(string(body)) {
			fields := strings.Fields(line)
			if len(fields) == 2 && strings.HasPrefix(fields[0], "megacluster_scheduler_bind_duration_seconds_count") {
				count, err := strconv.Atoi(fields[1])
				if err != nil {
					return err
				}
				sum += count
			}
		}
		return nil
	})
	return sum
}

// podGet asks a pod's plain HTTP port.
func podGet(ctx context.Context, pod *corev1.Pod, port int, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, address string) (net.Conn, error) { return dialPod(ctx, address) },
	}}
	url := fmt.Sprintf("http://%s%s", net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port)), path)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if _, err := io.Copy(&body, io.LimitReader(response.Body, 16<<20)); err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, response.Status)
	}
	return body.Bytes(), nil
}
