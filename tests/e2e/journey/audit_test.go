package journey

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// auditRecord has what is looked at of an audit.k8s.io/v1 Event.
type auditRecord struct {
	Kind           string `json:"kind"`
	Stage          string `json:"stage"`
	Verb           string `json:"verb"`
	RequestURI     string `json:"requestURI"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
}

// auditPolicy records what is done in one namespace only: the rest of the cluster is busy.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  namespaces: [audited]
- level: None
`

// TestAuditRecords sets an audit policy in the spec. A read that the front door's cache answers is then
// recorded by the front door, and one that a kube-apiserver answers by that, each once.
func TestAuditRecords(t *testing.T) {
	set := func(ctx context.Context, policy any) error {
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"apiServers": map[string]any{"auditPolicy": policy}}})
		if err != nil {
			return err
		}
		_, err = management.dynamic.Resource(megaClusters).Namespace(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	// rolled waits until all pods of both components have the policy, or none.
	rolled := func(wanted bool) {
		eventually(t, 3*time.Minute, "the rollout", func(ctx context.Context) error {
			for _, component := range []string{"apiserver", "watchcache"} {
				running, err := pods(ctx, component)
				if err != nil {
					return err
				}
				for i := range running {
					pod := &running[i]
					has := slices.ContainsFunc(pod.Spec.Containers[0].Args, func(arg string) bool { return strings.HasPrefix(arg, "--audit-policy-file=") })
					if has != wanted || !podReady(pod) {
						return fmt.Errorf("pod %s: policy %t, ready %t", pod.Name, has, podReady(pod))
					}
				}
			}
			return ready(ctx, namespace, name)
		})
	}
	if err := set(t.Context(), auditPolicy); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := set(context.WithoutCancel(t.Context()), nil); err != nil {
			t.Error(err)
		}
		rolled(false)
	}()
	rolled(true)

	for path, answers := range map[string]string{
		"/api/v1/namespaces/audited/pods?labelSelector=seen%3Dcached":                             "watchcache",
		"/apis/rbac.authorization.k8s.io/v1/namespaces/audited/roles?labelSelector=seen%3Dpassed": "apiserver",
	} {
		mega.mustKubectl(t, "", "get", "--raw", path)
		eventually(t, 20*time.Second, path+" is recorded", func(ctx context.Context) error {
			for _, component := range []string{"apiserver", "watchcache"} {
				found, err := recorded(ctx, component, path)
				if err != nil {
					return err
				}
				wanted := 0
				if component == answers {
					wanted = 1
				}
				if len(found) != wanted {
					return fmt.Errorf("%d records of %s, not %d: %+v", len(found), component, wanted, found)
				}
				for _, record := range found {
					if record.Verb != "list" || record.Stage != "ResponseComplete" || record.ResponseStatus.Code != 200 || record.User.Username == "" {
						t.Errorf("%s: %+v", component, record)
					}
				}
			}
			return nil
		})
	}
}

// recorded gives the records of a request in the logs of a component's pods.
func recorded(ctx context.Context, component, path string) ([]auditRecord, error) {
	running, err := pods(ctx, component)
	if err != nil {
		return nil, err
	}
	var found []auditRecord
	for i := range running {
		logs, err := management.kubectl(ctx, "", "-n", namespace, "logs", running[i].Name, "-c", running[i].Spec.Containers[0].Name)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, logs)
		}
		lines := bufio.NewScanner(strings.NewReader(logs))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var record auditRecord
			if strings.HasPrefix(lines.Text(), `{"kind":"Event"`) && json.Unmarshal(lines.Bytes(), &record) == nil && record.RequestURI == path {
				found = append(found, record)
			}
		}
	}
	return found, nil
}
