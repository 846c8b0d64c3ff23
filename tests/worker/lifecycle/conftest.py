"""Workers that can be stopped in their tracks anywhere."""

from rq import SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from worker.contract.queue import TaskQueue


def make_worker(queue: TaskQueue, name: str) -> SimpleWorker:
    """A worker that can be stopped in its tracks anywhere: nothing of it runs unless a test says so."""
    worker = SimpleWorker([queue.rq], name=name, connection=queue.rq.connection, serializer=JSONSerializer)
    worker.register_birth()
    return worker


def take_task(queue: TaskQueue) -> Job:
    """As far as the handover: the task is in no queue any more, and with no worker yet."""
    taken = queue.rq.dequeue_any([queue.rq], None, connection=queue.rq.connection, serializer=JSONSerializer)
    assert taken is not None
    return taken[0]


def start_task(worker: SimpleWorker, queue: TaskQueue) -> Execution:
    """As far as the first line of the task's function."""
    task = take_task(queue)
    execution = worker.prepare_execution(task)
    worker.prepare_job_execution(task, remove_from_intermediate_queue=True)
    return execution
