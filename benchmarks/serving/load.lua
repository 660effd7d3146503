-- wrk posts one photo again and again: PHOTO and CLASS come from the environment.
local file = assert(io.open(os.getenv("PHOTO"), "rb"))
wrk.method = "POST"
wrk.path = "/inspect?class=" .. os.getenv("CLASS")
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "image/png"
file:close()
