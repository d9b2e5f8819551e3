"""An exported network behind HTTP: one process, one model, batches of what arrives.

sockets      the port, connections that wait in it, the limit of open files
listening    start and stop: a uvicorn server
connection   a client's connection, with limits on how slow it may be
middleware   what every answer has: headers, a count, time to read it
routes       which path is answered by whom; errors as JSON; the files of page/
classify     POST /classify and GET /about
open_inference, tensors   the Open Inference Protocol (KServe, Triton): its routes, its messages
uploads, forms            the body of a request: within the limits of memory; a file in a form
service, batching         the network: threads that decode, a queue, batches
errors, limits, metrics   refusals and their texts; the default limits; GET /metrics
"""
