// Package leadership is the election of service/src/leadership, in Go: the same Lease, the same
// lines between standby and leader, the same times. docs/failover.md says what it guarantees.
package leadership

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations of the Lease, beside client-go's fields.
const (
	// AnnotationPeer says where standbys connect to the leader, and the key they show.
	AnnotationPeer = "megacluster.io/leader-peer"
	// AnnotationStandby says who may take over when the leader falls silent, by which session, and
	// whether it is synced or cold.
	AnnotationStandby = "megacluster.io/standby"
	// AnnotationEpoch is the resourceVersion of the write that took the Lease. While there is no
	// such annotation that write is the last one.
	AnnotationEpoch = "megacluster.io/epoch"
	// AnnotationReleased says the epoch that was given back, and for whom.
	AnnotationReleased = "megacluster.io/released"
	// AnnotationSettling is there while a leader may not act yet.
	AnnotationSettling = "megacluster.io/settling"
)

// A Lease that says more than this is taken to say this.
const longest = 60 * time.Second

type peer struct{ address, key string }

type standbyRecord struct {
	identity string
	session  uint64
	synced   bool
}

// record is what a Lease says.
type record struct {
	version   string
	holder    string
	epoch     uint64
	duration  time.Duration
	peer      *peer
	standby   *standbyRecord
	released  bool
	successor string
	settling  bool
}

func readRecord(lease *coordinationv1.Lease) record {
	r := record{version: lease.ResourceVersion}
	if lease.Spec.HolderIdentity != nil {
		r.holder = *lease.Spec.HolderIdentity
	}
	epoch, annotated := lease.Annotations[AnnotationEpoch]
	if !annotated {
		epoch = lease.ResourceVersion
	}
	r.epoch, _ = strconv.ParseUint(epoch, 10, 64)
	if n := lease.Spec.LeaseDurationSeconds; n != nil && *n > 0 {
		r.duration = min(time.Duration(*n)*time.Second, longest)
	}
	if address, key, ok := strings.Cut(lease.Annotations[AnnotationPeer], " "); ok {
		r.peer = &peer{address, key}
	}
	if words := strings.Split(lease.Annotations[AnnotationStandby], " "); len(words) == 3 {
		if session, err := strconv.ParseUint(words[1], 16, 64); err == nil {
			r.standby = &standbyRecord{words[0], session, words[2] == "synced"}
		}
	}
	if text, ok := lease.Annotations[AnnotationReleased]; ok {
		given, successor, _ := strings.Cut(text, " ")
		epoch, err := strconv.ParseUint(given, 10, 64)
		r.released = err == nil && epoch == r.epoch && r.holder == ""
		r.successor = successor
	}
	_, r.settling = lease.Annotations[AnnotationSettling]
	return r
}

// claim is what our own write says. The epoch is zero until it is known.
type claim struct {
	epoch    uint64
	standby  *standbyRecord
	settling bool
}

// claimed gives the Lease that follows from found. What is not ours in it stays.
func (e *election) claimed(found *coordinationv1.Lease, c claim, wall time.Time) *coordinationv1.Lease {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: e.config.Namespace, Name: e.config.Name}}
	if found != nil {
		lease = found.DeepCopy()
	}
	spec := &lease.Spec
	transitions, now := int32(0), metav1.NewMicroTime(wall)
	if spec.LeaseTransitions != nil {
		transitions = *spec.LeaseTransitions
	}
	if found != nil && c.epoch == 0 {
		transitions++
	}
	if c.epoch == 0 || spec.AcquireTime == nil {
		spec.AcquireTime = &now
	}
	seconds, identity := max(int32(e.config.LeaseDuration/time.Second), 1), e.config.Identity
	spec.HolderIdentity, spec.LeaseDurationSeconds = &identity, &seconds
	spec.RenewTime, spec.LeaseTransitions = &now, &transitions
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	set := func(key, value string) {
		if value == "" {
			delete(lease.Annotations, key)
		} else {
			lease.Annotations[key] = value
		}
	}
	set(AnnotationEpoch, "")
	if c.epoch != 0 {
		set(AnnotationEpoch, strconv.FormatUint(c.epoch, 10))
	}
	set(AnnotationPeer, "")
	if e.peer != nil {
		set(AnnotationPeer, e.peer.address+" "+e.peer.key)
	}
	set(AnnotationStandby, "")
	if s := c.standby; s != nil {
		state := "cold"
		if s.synced {
			state = "synced"
		}
		set(AnnotationStandby, fmt.Sprintf("%s %016x %s", s.identity, s.session, state))
	}
	set(AnnotationReleased, "")
	set(AnnotationSettling, "")
	if c.settling {
		set(AnnotationSettling, "true")
	}
	return lease
}

// givenBack gives the Lease back, as client-go does on release, for successor.
func givenBack(found *coordinationv1.Lease, successor string, wall time.Time) *coordinationv1.Lease {
	lease := found.DeepCopy()
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	epoch := strconv.FormatUint(readRecord(found).epoch, 10)
	lease.Annotations[AnnotationEpoch] = epoch
	lease.Annotations[AnnotationReleased] = strings.TrimSpace(epoch + " " + successor)
	delete(lease.Annotations, AnnotationPeer)
	delete(lease.Annotations, AnnotationStandby)
	nobody, second, now := "", int32(1), metav1.NewMicroTime(wall)
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &nobody, &second, &now
	return lease
}
