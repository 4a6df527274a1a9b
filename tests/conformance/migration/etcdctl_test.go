package migration

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// everyday is what people type. LEASE is the id of the first lease; a text behind ` < ` goes to
// standard input.
var everyday = []string{
	"put /a/1 one",
	"put /a/2 two",
	"put /a/1 uno --prev-kv",
	"put /a/3 -- -three",
	"put empty \"\"",
	"get /a/1",
	"get /a/1 --rev=2",
	"get /a/1 --rev=99",
	"get absent",
	"get /a/ --prefix",
	"get /a/ --prefix --keys-only",
	"get /a/ --prefix --count-only --write-out=fields",
	"get /a/ --prefix --print-value-only",
	"get /a/ --prefix --limit=2",
	"get /a/ --prefix --order=DESCEND --sort-by=KEY",
	"get /a/ --prefix --order=ASCEND --sort-by=VALUE",
	"get /a/ --prefix --min-mod-rev=3",
	"get /a/1 /a/3",
	"get /a/2 --from-key",
	"get /a/ --prefix --write-out=json",
	"get /a/1 --consistency=s",
	"put /a/1 --ignore-value",
	"put absent --ignore-value",
	"txn < mod(\"/a/1\") > \"0\"\n\nput /a/4 four\nget /a/ --prefix\n\nput /a/5 five\n\n",
	"txn < val(\"/a/1\") = \"wrong\"\nver(\"/a/2\") = \"1\"\n\nput /a/4 other\n\nget /a/1\ndel /a/2 --prev-kv\n\n",
	"txn < create(\"/new\") = \"0\"\n\nput /new v\nput /new w\n\n\n",
	"del /a/3 --prev-kv",
	"del absent",
	"del /a/ --prefix",
	"lease grant 600",
	"put /l/1 v --lease=LEASE",
	"put /l/2 v --lease=LEASE",
	"put /l/3 v --lease=1234",
	"lease list",
	"lease keep-alive --once LEASE",
	"get /l/ --prefix --keys-only",
	"put /l/1 --ignore-lease other",
	"lease revoke LEASE",
	"lease revoke LEASE",
	"lease timetolive LEASE",
	"get /l/ --prefix",
	"watch /w --rev=1 &",
	"compaction 5",
	"compaction 5",
	"compaction 9999",
	"get /a/1 --rev=3",
	"endpoint health",
	"alarm list",
	"alarm disarm",
	"defrag",
	"user list",
	"role list",
	"auth status",
	"auth enable",
	"user get root",
	"role get root",
	"user delete root",
	"user grant-role root root",
	"role grant-permission r read /a",
	"move-leader 1234",
	"member remove 1234",
	"member promote 1234",
	"member update 1234 --peer-urls=http://127.0.0.1:1",
}

var (
	hex   = regexp.MustCompile(`\b[0-9a-f]{14,16}\b`)
	ids   = regexp.MustCompile(`"?(cluster_id|member_id|raft_term|ClusterID|MemberID|RaftTerm)"? ?: ?\d+`)
	took  = regexp.MustCompile(`took = [0-9.µm]+s|took [0-9.]+m?s|\d{4}-\d\d-\d\dT\S+`)
	warn  = regexp.MustCompile(`(?m)^\{"level":"warn".*\n`)
	lease = regexp.MustCompile(`lease ([0-9a-f]+) granted`)
)

// TestEtcdctl gives an etcd and a store the same commands, and compares what people see.
func TestEtcdctl(t *testing.T) {
	etcdctl := program(t, "CTL_BINARY")
	servers := []*server{startEtcd(t, t.TempDir()), startStore(t, t.TempDir())}
	leases := make([]string, 2)
	for _, command := range everyday {
		var outputs [2]string
		for i, s := range servers {
			outputs[i] = s.etcdctl(t, etcdctl, strings.ReplaceAll(command, "LEASE", leases[i]))
			if found := lease.FindStringSubmatch(outputs[i]); found != nil {
				leases[i] = found[1]
			}
			outputs[i] = strings.ReplaceAll(outputs[i], s.url, "URL")
			outputs[i] = strings.ReplaceAll(outputs[i], strings.TrimPrefix(s.url, "http://"), "URL")
			outputs[i] = warn.ReplaceAllString(outputs[i], "")
			outputs[i] = ids.ReplaceAllString(outputs[i], "$1")
			outputs[i] = took.ReplaceAllString(outputs[i], "TIME")
			outputs[i] = hex.ReplaceAllString(outputs[i], "ID")
		}
		if outputs[0] != outputs[1] {
			t.Errorf("etcdctl %s\n etcd: %s\nstore: %s", command, outputs[0], outputs[1])
		}
	}
	// Not the same, but there.
	store := servers[1]
	for command, part := range map[string]string{
		"endpoint status --write-out=json": `"version":"3.6.8"`,
		"endpoint hashkv":                  store.url,
		"member list":                      "started",
		"lock /lock echo locked":           "locked",
		"version":                          "etcdctl version",
	} {
		if output := store.etcdctl(t, etcdctl, command); !strings.Contains(output, part) {
			t.Errorf("etcdctl %s: %s", command, output)
		}
	}
	file := filepath.Join(t.TempDir(), "snapshot.db")
	if output := store.etcdctl(t, etcdctl, "snapshot save "+file); !strings.Contains(output, "Snapshot saved") {
		t.Errorf("snapshot save: %s", output)
	}
}

// TestQuota fills a store up to its quota, and makes room again as etcd's manual says.
func TestQuota(t *testing.T) {
	etcdctl := program(t, "CTL_BINARY")
	store := startStore(t, t.TempDir(), "--quota-backend-bytes=200000")
	value := strings.Repeat("x", 10000)
	full := false
	for i := 0; i < 100 && !full; i++ {
		output := store.etcdctl(t, etcdctl, "put key "+value)
		full = strings.Contains(output, "etcdserver: mvcc: database space exceeded")
	}
	if !full {
		t.Fatal("the quota was never reached")
	}
	for _, step := range [][2]string{
		{"alarm list", "alarm:NOSPACE"},
		{"put other v", "database space exceeded"},
		{"lease grant 60", "database space exceeded"},
		{"get key --keys-only", "key"},
		{"endpoint status --write-out=json", "NOSPACE"},
		{"endpoint health", "unhealthy"},
		{"compaction 15", "compacted revision 15"},
		{"del key", "1"},
	} {
		if output := store.etcdctl(t, etcdctl, step[0]); !strings.Contains(output, step[1]) {
			t.Errorf("etcdctl %s: %s", step[0], output)
		}
	}
	// Room comes back a moment after the compaction; the alarm stays until it is disarmed.
	deadline := time.Now().Add(patience)
	for {
		store.etcdctl(t, etcdctl, "alarm disarm")
		output := store.etcdctl(t, etcdctl, "put other v")
		if strings.Contains(output, "OK") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still no room: %s", output)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if output := store.etcdctl(t, etcdctl, "alarm list"); strings.TrimSpace(output) != "" {
		t.Errorf("alarms that are left: %s", output)
	}
}

// etcdctl runs one command; one that ends with ` &` goes on for ever, and is ended after a second.
func (s *server) etcdctl(t *testing.T, binary, command string) string {
	t.Helper()
	command, input, _ := strings.Cut(command, " < ")
	command, forever := strings.CutSuffix(command, " &")
	args := []string{"--endpoints=" + s.url, "--command-timeout=20s"}
	for _, word := range strings.Fields(command) {
		args = append(args, strings.Trim(word, `"`))
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdin = strings.NewReader(input)
	output := &buffer{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := patience
	if forever {
		limit = time.Second
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	text := output.String()
	if err != nil && !forever {
		text += err.Error()
	}
	return text
}
