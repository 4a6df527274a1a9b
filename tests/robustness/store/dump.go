package store

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"

	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
)

// Record is one line of `megacluster-store dump`, as far as the judging needs it.
type Record struct {
	Kind     string
	Revision int64
	Ops      []struct {
		Op    string
		Key   []byte
		Value []byte
	}
}

func parseDump(output []byte) ([]Record, error) {
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 64<<20)
	var records []Record
	ended := false
	for lines.Scan() {
		var record Record
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			return nil, err
		}
		switch record.Kind {
		case "txn", "compact":
			records = append(records, record)
		case "end":
			ended = true
		default:
			return nil, fmt.Errorf("the dump has a %q, which this traffic does not make", record.Kind)
		}
	}
	if !ended {
		return nil, errors.New("the dump has no end")
	}
	return records, lines.Err()
}

// version is what etcd's conditions look at.
type version struct{ revision, version int64 }

// Persisted says which of the clients' requests made the records: the log holds what a request did,
// etcd's validator wants the request. A request is one whose conditions held and whose writes are
// just the record's. A record that no client asked for, or a gap between revisions, is an error.
func Persisted(records []Record, reports []report.ClientReport) ([]model.EtcdRequest, error) {
	asked := map[string][]model.EtcdRequest{}
	for _, client := range reports {
		for _, operation := range client.KeyValue {
			request := operation.Input.(model.EtcdRequest)
			if request.Type != model.Txn || request.IsRead() {
				continue
			}
			for _, branch := range [][]model.EtcdOperation{
				request.Txn.OperationsOnSuccess, request.Txn.OperationsOnFailure,
			} {
				if writes := writesOf(branch); writes != "" {
					asked[writes] = append(asked[writes], request)
				}
			}
		}
	}
	keys := map[string]version{}
	revision := int64(1)
	var persisted []model.EtcdRequest
	for _, record := range records {
		if record.Kind == "compact" {
			persisted = append(persisted, model.EtcdRequest{
				Type: model.Compact, Compact: &model.CompactRequest{Revision: record.Revision},
			})
			continue
		}
		if revision++; record.Revision != revision {
			return nil, fmt.Errorf("revision %d is followed by %d", revision-1, record.Revision)
		}
		var writes strings.Builder
		for _, op := range record.Ops {
			write(&writes, op.Op == "put", string(op.Key), model.ToValueOrHash(string(op.Value)))
		}
		request, err := find(asked[writes.String()], writes.String(), keys)
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", revision, err)
		}
		persisted = append(persisted, request)
		for _, op := range record.Ops {
			if op.Op == "put" {
				keys[string(op.Key)] = version{revision, keys[string(op.Key)].version + 1}
			} else {
				delete(keys, string(op.Key))
			}
		}
	}
	return persisted, nil
}

func write(to *strings.Builder, put bool, key string, value model.ValueOrHash) {
	if put {
		fmt.Fprintf(to, "put %q %q %d\n", key, value.Value, value.Hash)
	} else {
		fmt.Fprintf(to, "delete %q\n", key)
	}
}

func writesOf(branch []model.EtcdOperation) string {
	var writes strings.Builder
	for _, operation := range branch {
		switch operation.Type {
		case model.PutOperation:
			write(&writes, true, operation.Put.Key, operation.Put.Value)
		case model.DeleteOperation:
			write(&writes, false, operation.Delete.Key, model.ValueOrHash{})
		}
	}
	return writes.String()
}

// find gives the request among candidates that writes just this where keys stand as they do. Two that
// fit are alike in all that matters.
func find(candidates []model.EtcdRequest, writes string, keys map[string]version) (model.EtcdRequest, error) {
	for _, request := range candidates {
		holds := true
		for _, condition := range request.Txn.Conditions {
			now := keys[condition.Key]
			if condition.ExpectedVersion > 0 {
				holds = holds && now.version == condition.ExpectedVersion
			} else {
				holds = holds && now.revision == condition.ExpectedRevision
			}
		}
		branch := request.Txn.OperationsOnFailure
		if holds {
			branch = request.Txn.OperationsOnSuccess
		}
		if writesOf(branch) == writes {
			return request, nil
		}
	}
	return model.EtcdRequest{}, fmt.Errorf("no client asked for %s(%d asked for something like it)", writes, len(candidates))
}

// Acknowledged counts the writes that clients were told of.
func Acknowledged(operations []porcupine.Operation) (count int) {
	for _, operation := range operations {
		request := operation.Input.(model.EtcdRequest)
		response := operation.Output.(model.MaybeEtcdResponse)
		if request.Type == model.Txn && !request.IsRead() && response.Error == "" && !response.Txn.Failure {
			count++
		}
	}
	return count
}
