package store

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// tracedCalls are all that change what is on the disk or make it durable. io_uring_setup is there to
// see that it isn't used: what goes through a ring is not seen.
const tracedCalls = "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate," +
	"fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,fallocate," +
	"copy_file_range,sendfile,mmap,io_uring_setup"

const sector = 512

// file is what is known of one file.
type file struct {
	// written is its length as far as write calls have told, synced what a sync covers.
	written, synced int64
	// reserved: behind what is written there is room, which reads as zeros.
	reserved bool
}

// nameOp is a change of names that no sync of the directory has covered yet.
type nameOp struct {
	// from is empty for a file that was made; to is empty for one that was removed.
	from, to string
}

// Disk follows by its system calls what a process changed in one flat directory, and what it synced.
type Disk struct {
	dir   string
	files map[string]*file
	names []nameOp
	// Syncs that succeeded, of files.
	Syncs int
}

// ReadDisk begins with a directory at rest: all that is there is durable.
func ReadDisk(dir string) (*Disk, error) {
	disk := &Disk{dir: dir, files: map[string]*file{}}
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return disk, nil
	}
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		disk.files[entry.Name()] = &file{written: info.Size(), synced: info.Size()}
	}
	return disk, nil
}

var (
	// A call that came to its end, with process id, name, arguments and what it returned.
	callLine = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)$`)
	begun    = regexp.MustCompile(`^(\d+) +(\w+\(.*?),? <unfinished \.\.\.>$`)
	resumed  = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	// The path of a file descriptor in an argument, and a string.
	fdPath = regexp.MustCompile(`^-?\w+<([^<>]*)>`)
	quoted = regexp.MustCompile(`"([^"]*)"`)
)

// mark is what a sync covers if it succeeds: what was there when it began.
type mark struct {
	length int64
	names  int
}

// Follow applies a whole trace of strace -f -y.
func (d *Disk) Follow(trace string) error {
	open := map[string]string{}
	marks := map[string]mark{}
	for _, line := range strings.Split(trace, "\n") {
		if m := begun.FindStringSubmatch(line); m != nil {
			open[m[1]] = m[2]
			marks[m[1]] = d.mark(m[2])
			continue
		}
		from := (*mark)(nil)
		if m := resumed.FindStringSubmatch(line); m != nil {
			begin, ok := open[m[1]]
			if !ok {
				return fmt.Errorf("trace: nothing to resume: %s", line)
			}
			at := marks[m[1]]
			from = &at
			delete(open, m[1])
			line = m[1] + " " + begin + strings.TrimPrefix(m[2], ",")
		}
		call := callLine.FindStringSubmatch(line)
		if call == nil {
			continue
		}
		if err := d.call(call[2], call[3], call[4], call[5], from); err != nil {
			return fmt.Errorf("%w: %s", err, line)
		}
	}
	return nil
}

// inside gives the name of a path in the directory.
func (d *Disk) inside(path string) (string, bool) {
	path = strings.TrimSuffix(path, " (deleted)")
	if filepath.Dir(path) != d.dir {
		return "", false
	}
	return filepath.Base(path), true
}

func (d *Disk) fd(arguments string) (path string) {
	if m := fdPath.FindStringSubmatch(arguments); m != nil {
		return m[1]
	}
	return ""
}

func (d *Disk) mark(begin string) mark {
	_, arguments, _ := strings.Cut(begin, "(")
	at := mark{names: len(d.names)}
	if name, ok := d.inside(d.fd(arguments)); ok && d.files[name] != nil {
		at.length = d.files[name].written
	}
	return at
}

func (d *Disk) call(name, arguments, result, rest string, from *mark) error {
	if from == nil {
		at := d.mark(name + "(" + arguments)
		from = &at
	}
	number, err := strconv.ParseInt(result, 10, 64)
	if err != nil || number < 0 {
		return nil
	}
	injected := strings.Contains(rest, "INJECTED")
	paths := []string{}
	for _, m := range quoted.FindAllStringSubmatch(arguments, -1) {
		paths = append(paths, m[1])
	}
	switch name {
	case "io_uring_setup":
		return fmt.Errorf("the store uses io_uring: this harness does not see what it writes")
	case "openat", "open", "creat":
		if len(paths) == 1 && strings.Contains(arguments, "O_CREAT") {
			if base, ok := d.inside(paths[0]); ok && d.files[base] == nil {
				d.files[base] = &file{}
				d.names = append(d.names, nameOp{to: base})
			}
		}
	case "write", "writev", "pwrite64", "pwritev", "pwritev2":
		if base, ok := d.inside(d.fd(arguments)); ok {
			if name != "write" && name != "writev" {
				return fmt.Errorf("a write at a place of its own is not known here")
			}
			if f := d.files[base]; f != nil {
				f.written += number
			}
		}
	case "ftruncate":
		if base, ok := d.inside(d.fd(arguments)); ok && d.files[base] != nil {
			fields := strings.Split(arguments, ", ")
			length, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			if err != nil {
				return err
			}
			f := d.files[base]
			f.written, f.synced = length, min(f.synced, length)
		}
	case "fsync", "fdatasync":
		if injected {
			// It never reached the kernel.
			return nil
		}
		path := d.fd(arguments)
		if path == d.dir {
			d.names = d.names[min(from.names, len(d.names)):]
		} else if base, ok := d.inside(path); ok && d.files[base] != nil {
			d.files[base].synced = max(d.files[base].synced, from.length)
			d.Syncs++
		}
	case "rename", "renameat", "renameat2":
		if len(paths) != 2 {
			return fmt.Errorf("a rename without two names")
		}
		old, ok := d.inside(paths[0])
		now, also := d.inside(paths[1])
		if ok && also {
			d.files[now] = d.files[old]
			delete(d.files, old)
			d.names = append(d.names, nameOp{from: old, to: now})
		}
	case "unlink", "unlinkat":
		if base, ok := d.inside(paths[len(paths)-1]); ok {
			delete(d.files, base)
			d.names = append(d.names, nameOp{from: base})
		}
	case "mmap":
		if strings.Contains(arguments, "MAP_SHARED") && strings.Contains(arguments, "PROT_WRITE") {
			if m := regexp.MustCompile(`\d+<([^<>]*)>`).FindStringSubmatch(arguments); m != nil {
				if _, ok := d.inside(m[1]); ok {
					return fmt.Errorf("a file mapped for writing is not known here")
				}
			}
		}
	case "fallocate":
		base, ok := d.inside(d.fd(arguments))
		if !ok || d.files[base] == nil {
			break
		}
		if !regexp.MustCompile(`^[^,]*, 0, `).MatchString(arguments) {
			return fmt.Errorf("this use of fallocate is not known here")
		}
		d.files[base].reserved = true
	case "truncate", "copy_file_range", "sendfile", "sync_file_range":
		if strings.Contains(arguments, d.dir+"/") {
			return fmt.Errorf("this call is not known here")
		}
	}
	return nil
}

// Loss is what a loss of power took.
type Loss struct {
	// Bytes cut off or zeroed, and changes of names undone.
	Bytes int64
	Names int
}

// Lose takes back a random part of what was not synced: of each file, its end from a random place on
// and, with holes, some of the sectors before it; of the changes of names, the last ones.
func (d *Disk) Lose(random *rand.Rand, holes bool) (Loss, error) {
	loss := Loss{}
	kept := random.Intn(len(d.names) + 1)
	for i := len(d.names) - 1; i >= kept; i-- {
		op := d.names[i]
		var err error
		switch {
		case op.to == "":
			// Removed, and here for good: also a thing that can happen.
			continue
		case op.from == "":
			err = os.Remove(filepath.Join(d.dir, op.to))
			delete(d.files, op.to)
		default:
			err = os.Rename(filepath.Join(d.dir, op.to), filepath.Join(d.dir, op.from))
			d.files[op.from] = d.files[op.to]
			delete(d.files, op.to)
		}
		if err != nil && !os.IsNotExist(err) {
			return loss, err
		}
		loss.Names++
	}
	names := make([]string, 0, len(d.files))
	for name := range d.files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		lost, err := loseContent(filepath.Join(d.dir, name), d.files[name], random, holes)
		if err != nil {
			return loss, err
		}
		loss.Bytes += lost
	}
	d.names = nil
	return loss, nil
}

func loseContent(path string, file *file, random *rand.Rand, holes bool) (int64, error) {
	content, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	synced, length := file.synced, int64(len(content))
	if file.reserved {
		length = min(length, file.written)
	}
	if synced >= length {
		return 0, nil
	}
	keep := synced + random.Int63n(length-synced+1)
	now := bytes.Clone(content[:keep])
	lost := length - keep
	for at := synced; holes && at < keep; {
		end := min((at/sector+1)*sector, keep)
		if random.Intn(3) == 0 {
			// This sector never reached the disk.
			clear(now[at:end])
			lost += end - at
		}
		at = end
	}
	// In place: the archive links the same file.
	out, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	if err := out.Truncate(keep); err != nil {
		return 0, err
	}
	_, err = out.WriteAt(now, 0)
	return lost, err
}
