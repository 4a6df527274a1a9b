package store

import (
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A life of a log: a segment is made under another name, synced, named; then two writes of which a
// sync covers the first, one more in which the second began before the end of the sync.
const life = `10 openat(AT_FDCWD</>, "DIR/log-1.tmp", O_WRONLY|O_CREAT|O_EXCL|O_APPEND, 0666) = 9<DIR/log-1.tmp>
10 write(9<DIR/log-1.tmp>, ""..., 24) = 24
10 fdatasync(9<DIR/log-1.tmp>)    = 0
10 rename("DIR/log-1.tmp", "DIR/log-1") = 0
10 fsync(10<DIR>)                 = 0
10 write(9<DIR/log-1>, ""..., 1000) = 1000
11 fdatasync(9<DIR/log-1> <unfinished ...>
10 write(9<DIR/log-1>, ""..., 500) = 500
11 <... fdatasync resumed>)       = 0
10 write(9<DIR/log-1>, ""..., 300 <unfinished ...>
11 openat(AT_FDCWD</>, "DIR/log-2.tmp", O_WRONLY|O_CREAT|O_EXCL|O_APPEND, 0666) = 11<DIR/log-2.tmp>
11 fdatasync(11<DIR/log-2.tmp>)   = -1 EIO (Input/output error) (INJECTED)
10 +++ killed by SIGKILL +++
`

func follow(t *testing.T, trace string) *Disk {
	t.Helper()
	dir := t.TempDir()
	disk, err := ReadDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Follow(strings.ReplaceAll(trace, "DIR", dir)); err != nil {
		t.Fatal(err)
	}
	return disk
}

func TestASyncCoversWhatWasWrittenWhenItBegan(t *testing.T) {
	disk := follow(t, life)
	log := disk.files["log-1"]
	if log == nil || log.written != 1524 || log.synced != 1024 || disk.Syncs != 2 {
		t.Fatalf("log-1 is %+v, %d syncs", log, disk.Syncs)
	}
	if len(disk.names) != 1 || disk.names[0].to != "log-2.tmp" {
		t.Fatalf("names that may be lost: %+v", disk.names)
	}
}

func TestALieIsNoSync(t *testing.T) {
	disk := follow(t, strings.ReplaceAll(life, "fdatasync(9<DIR/log-1.tmp>)    = 0",
		"fdatasync(9<DIR/log-1.tmp>)    = 0 (INJECTED)"))
	if disk.Syncs != 1 {
		t.Fatalf("%d syncs", disk.Syncs)
	}
}

func TestWhatIsNotUnderstoodIsAnError(t *testing.T) {
	for _, line := range []string{
		"10 io_uring_setup(64, {}) = 5",
		`10 pwrite64(9<DIR/log-1>, ""..., 24, 0) = 24`,
		"10 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 9<DIR/log-1>, 0) = 140000000000",
		"10 fallocate(9<DIR/log-1>, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, 4096) = 0",
	} {
		disk := &Disk{dir: "DIR", files: map[string]*file{"log-1": {}}}
		if err := disk.Follow(line); err == nil {
			t.Errorf("passed over: %s", line)
		}
	}
}

// Room that was reserved is no content: a loss takes what was written, not the zeros behind it.
func TestReservedRoomIsNotLost(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	cut := 0
	for range 50 {
		disk := &Disk{dir: t.TempDir(), files: map[string]*file{"log-1": {written: 100, synced: 100}}}
		line := "10 fallocate(9<" + disk.dir + "/log-1>, 0, 100, 1000000) = 0\n" +
			"10 write(9<" + disk.dir + "/log-1>, \"\"..., 50) = 50"
		if err := disk.Follow(line); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(disk.dir, "log-1")
		content := append([]byte(strings.Repeat("x", 150)), make([]byte, 1000000)...)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := disk.Lose(random, false); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) < 100 || len(left) > 150 {
			t.Fatalf("%d bytes left", len(left))
		}
		if len(left) < 150 {
			cut++
		}
	}
	if cut == 0 {
		t.Fatal("nothing was ever lost")
	}
}

func TestALossSparesWhatWasSynced(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	var most Loss
	for range 200 {
		disk := follow(t, life)
		content := []byte(strings.Repeat("x", 1700))
		path := filepath.Join(disk.dir, "log-1")
		for _, name := range []string{path, filepath.Join(disk.dir, "log-2.tmp")} {
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		loss, err := disk.Lose(random, true)
		if err != nil {
			t.Fatal(err)
		}
		most.Bytes, most.Names = max(most.Bytes, loss.Bytes), max(most.Names, loss.Names)
		left, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) < 1024 || strings.Trim(string(left[:1024]), "x") != "" {
			t.Fatalf("synced content is gone: %d bytes left", len(left))
		}
	}
	if most.Bytes < 1700 || most.Names != 1 {
		t.Fatalf("the largest loss was %+v", most)
	}
}
